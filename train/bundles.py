"""Supervised rows: the questions about one visual behind that visual, computed once."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.data.selection import without
from videoauto_jax.data.skips import LeftOut
from videoauto_jax.errors import DataError
from videoauto_jax.train.groups import GroupBatch, pack_groups


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An encoded row.

    Attributes:
        prefix: what all conversations share, the visual included.
        branches: the rest of each conversation, its demonstration and stop token included.
        question_tokens: tokens of each branch that come before the demonstration.
    """

    prefix: Encoded
    branches: list[Int[np.ndarray, "R"]]
    question_tokens: list[int]

    @property
    def token_ids(self) -> Int[np.ndarray, "P"]:
        """Tokens of the prefix: what a bound on prompt length counts."""
        return self.prefix.token_ids


def with_targets(
    samples: Sequence[Sample], target: Literal["response", "answer", "boxed"]
) -> tuple[list[Sample], list[LeftOut]]:
    r"""The samples with what is to be learnt as their demonstration, and those whose answer is missing or empty.

    Args:
        target: `response`: what the records bring; `answer`: the truth as text (upstream's supervised baseline);
            `boxed`: in the form that the prompts ask for: `\boxed{A}`, `\boxed{[1.0, 2.5]}`, `\boxed{A <> [1.0, 2.5]}`.
    """
    if target == "response":
        return list(samples), []
    truths = {sample.id: _truth(sample) for sample in samples}
    nothing = [LeftOut(s.id, s.media, "it has no answer to learn") for s in samples if not truths[s.id].strip()]
    form = "{}" if target == "answer" else "\\boxed{{{}}}"
    kept = without(samples, nothing)
    return [dataclasses.replace(sample, response=form.format(truths[sample.id])) for sample in kept], nothing


def _truth(sample: Sample) -> str:
    """The truth as text, empty where there is none. Of several segments the first is taken."""
    answer = sample.answer
    if answer is None:
        return ""
    if isinstance(answer, dict):
        return f"{answer['answer']} <> {_interval(answer['segment'][0])}"
    if isinstance(answer, list):
        return _interval(answer[0] if isinstance(answer[0], list) else answer)
    return str(answer)


def _interval(segment: Sequence[float]) -> str:
    return f"[{float(segment[0]):.1f}, {float(segment[1]):.1f}]"


def make_bundles(samples: Sequence[Sample], size: int) -> list[Sample]:
    """Groups demonstrations about the same visual (or, for text, the same system prompt) into rows of at most `size`.

    A bundle is a `Sample` whose one message lists the conversations, so that the prompt stream shuffles, skips and
    resumes bundles as it does single prompts.

    Raises:
        DataError: a sample without a demonstration.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if not sample.response:
            raise DataError("no demonstration", where=sample.id, fix="Give the record a `response`")
        groups.setdefault(repr(_opening(sample)), []).append(sample)
    pieces = [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
    return [_bundle(piece) for piece in pieces]


def _opening(sample: Sample) -> list:
    """The part of a conversation before its question."""
    *before, last = sample.messages
    visuals = [part for part in last["content"] if part["type"] != "text"]
    return [*before, visuals]


def _bundle(samples: list[Sample]) -> Sample:
    conversations = [(sample.messages, sample.response) for sample in samples]
    message = {"role": "user", "content": samples[0].messages[-1]["content"], "conversations": conversations}
    ids = "+".join(sample.id for sample in samples)
    return Sample([message], [sample.response for sample in samples], "demonstration", samples[0].source, ids)


@dataclasses.dataclass(frozen=True)
class BundleEncoder:
    """Encodes bundles; given to the prompt stream in the processor's place.

    Attributes:
        processor: the checkpoint's processor.
        max_response_tokens: most tokens of a branch.
    """

    processor: Processor
    max_response_tokens: int

    def encode(self, messages: list[dict]) -> Bundle:
        """A bundle's row.

        Raises:
            DataError: a branch is too long, and whatever `Processor.encode` raises.
        """
        conversations = messages[0]["conversations"]
        prompts = [self.processor.encode(chat) for chat, _ in conversations]
        shared = _shared_length(prompts)
        branches, questions = [], []
        for prompt, (_, response) in zip(prompts, conversations):
            question = prompt.token_ids[shared:]
            answer = self.processor.tokenizer(response, add_special_tokens=False)["input_ids"]
            branch = np.array([*question, *answer, self.processor.eos_token_ids[0]], np.int32)
            if len(branch) > self.max_response_tokens:
                raise DataError(
                    f"question and demonstration have {len(branch)} tokens, the limit is {self.max_response_tokens}",
                    fix="Raise max_response_tokens",
                )
            branches.append(branch)
            questions.append(len(question))
        return Bundle(cut(prompts[0], shared), branches, questions)


def _shared_length(prompts: Sequence[Encoded]) -> int:
    """Tokens that all prompts begin with; one is left to each, so that every branch has a question."""
    first = prompts[0].token_ids
    length = min(len(prompt.token_ids) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        differs = np.flatnonzero(prompt.token_ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    visual_end = int(np.max(np.flatnonzero(prompts[0].vision_index >= 0), initial=-1)) + 1
    return max(length, visual_end)


def cut(prompt: Encoded, length: int) -> Encoded:
    """The first `length` tokens of a prompt; all its visuals have to lie within them, so that only text is cut off."""
    return dataclasses.replace(
        prompt,
        token_ids=prompt.token_ids[:length],
        positions=prompt.positions[:, :length],
        vision_index=prompt.vision_index[:length],
        next_position=prompt.next_position - (len(prompt.token_ids) - length),
    )


def pack_bundles(
    processor: Processor,
    bundles: Sequence[Bundle],
    *,
    bound: int,
    count: int,
    prompt_lengths: Sequence[int] | None = None,
    patch_counts: Sequence[int] | None = None,
    branch_lengths: Sequence[int] | None = None,
) -> tuple[GroupBatch, Float[np.ndarray, "B G R"]]:
    """Group rows of bundles, and a weight of 1 on the tokens of demonstrations."""
    prefixes = [bundle.prefix for bundle in bundles]
    inputs = processor.collate(prefixes, lengths=prompt_lengths, patches=patch_counts)
    positions = [prefix.next_position for prefix in prefixes]
    branches = [bundle.branches for bundle in bundles]
    batch = pack_groups(inputs, positions, branches, bound=bound, count=count, lengths=branch_lengths)
    weights = batch.mask.astype(np.float32)
    for row, bundle in enumerate(bundles):
        for branch, question in enumerate(bundle.question_tokens):
            weights[row, branch, :question] = 0
    return batch, weights
