"""This package's models inside lmms-eval: `lmms-eval --model videoauto_jax --model_args model=FOLDER,...`.

lmms-eval asks, extracts and scores; prompts, decoding and the gate are ours. This module is imported in its environment
and nowhere else.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from lmms_eval.api.model import lmms

from videoauto_jax.config import load_config
from videoauto_jax.data.annotations import ImageBudget, Sample, VideoBudget
from videoauto_jax.errors import DataError, UsageError
from videoauto_jax.eval.answering import ModelAnswerer
from videoauto_jax.eval.cases import Case
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.prompts import Prompts
from videoauto_jax.eval.records import answer_text
from videoauto_jax.protocol.prompts import system_prompt
from videoauto_jax.sampling.answer import Answer


class VideoAutoJax(lmms):
    """Answers lmms-eval's requests as a recipe says."""

    is_simple = False

    def __init__(self, model: str, recipe: str = "eval/qwen3_vl_auto_128k", batch_size: int = 8, **overrides):
        """
        Args:
            model: HF folder.
            recipe: an evaluation's recipe: budgets, prompts, sampling. Its benchmarks are not used.
            batch_size: prompts that run at once.
            overrides: keys of the recipe, with `__` for a dot: `sampling__threshold=0.97`.
        """
        super().__init__()
        changes = {"model": model, "output": "unused", "sampling.prompts": batch_size, **overrides}
        changes.pop("device", None), changes.pop("max_batch_size", None)  # what lmms-eval passes to every model
        words = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        self._config = load_config(EvalConfig, recipe, words)
        self._processor = self._config.data.processor(model)
        self._answerer = ModelAnswerer(self._config, self._processor)

    def generate_until(self, requests: Sequence) -> list[str]:
        """The answer that counts to every request, in order.

        Raises:
            DataError: a request has no prompt; lmms-eval cannot leave one out of its scores.
        """
        found = [""] * len(requests)
        for tokens, places in self._by_length(requests).items():
            cases = [self._case(n, requests[n].args[1], self._document(requests[n])) for n in places]
            for case, answer in self._answers(cases, tokens):
                found[int(case.sample.id)] = self._said(answer)
        return found

    def loglikelihood(self, requests: Sequence):
        """Not offered: the paper's benchmarks generate."""
        raise UsageError("videoauto_jax does not score given answers", fix="Use a task of output type generate_until")

    def generate_until_multi_round(self, requests: Sequence):
        """Not offered."""
        raise UsageError("videoauto_jax answers one round", fix="Use a task of output type generate_until")

    def _by_length(self, requests: Sequence) -> dict[int, list[int]]:
        """Places of the requests by how long answers may get; a model that thinks needs more than tasks allow."""
        limit, parts = self._config.sampling.max_new_tokens, {}
        for place, request in enumerate(requests):
            direct = self._config.data.prompt == "direct"
            asked = request.args[2].get("max_new_tokens", limit)
            parts.setdefault(asked if direct else limit, []).append(place)
        return parts

    def _document(self, request):
        *_, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _case(self, place: int, doc_to_messages, document) -> Case:
        data = self._config.data
        text = system_prompt(data.prompt, variant=self._config.prompt_variant)
        messages = [{"role": "system", "content": text}]
        for message in doc_to_messages(document):
            parts = [_part(part, data.image, data.video) for part in message["content"]]
            messages.append({"role": message["role"], "content": parts})
        return Case(Sample(messages, None, "exact_match", "lmms_eval", str(place)))

    def _answers(self, cases: list[Case], tokens: int) -> Iterator[tuple[Case, Answer]]:
        sampling = dataclasses.replace(self._config.sampling, max_new_tokens=tokens)
        prompts = Prompts(cases, self._processor, workers=self._config.data.workers, ahead=2 * sampling.prompts)
        try:
            for position, answer in self._answerer.stream(prompts, sampling):
                if answer.error:
                    raise DataError(answer.error)
                yield prompts.taken[position], answer
        finally:
            prompts.close()
        if prompts.damaged:
            case, reason = prompts.damaged[0]
            raise DataError(f"{len(prompts.damaged)} requests have no prompt", where=case.sample.media, fix=reason)

    def _said(self, answer: Answer) -> str:
        """The text that tasks read: up to the thought where the gate ended the answer, else what is behind it."""
        which = "first" if answer.exited or self._config.sampling.mode == "first" else "second"
        return answer_text(answer.text, which, "paper")


def _part(part: dict, image: ImageBudget, video: VideoBudget) -> dict:
    """A part of lmms-eval's message as a part of ours, with its budget."""
    if part["type"] == "text":
        return part
    if part["type"] == "image":
        return {"type": "image", "image": part["url"], **dataclasses.asdict(image)}
    if part["type"] == "video":
        return {"type": "video", "video": part["url"], **video.fields()}
    raise DataError(f"a request has a part of type {part['type']}", fix="Use tasks with text, images and videos")
