"""From chat messages to answers: prompts through the slots."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.errors import DataError, MediaError, VideoAutoError
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.protocol.grammar import begun_response
from videoauto_jax.sampling import engine
from videoauto_jax.sampling.answer import Answer, make_answer, refusal
from videoauto_jax.sampling.config import SamplingConfig, check_whole
from videoauto_jax.sampling.draw import Sampling
from videoauto_jax.sampling.pieces import Collated
from videoauto_jax.sampling.placing import rollout_weights
from videoauto_jax.sampling.schedule import Finished, Schedule, Usage
from videoauto_jax.sampling.slots import STOPPED, Branches
from videoauto_jax.sampling.table import Table, Writing
from videoauto_jax.sampling.watch import OnText, Watch, cut_at

if TYPE_CHECKING:
    from videoauto_jax.data.processor import Processor

__all__ = ["Sampler", "SamplingConfig"]


class Sampler:
    """Writes answers with one model.

    Args:
        model: the model. `sampler.model` may be replaced by one of the same shapes; nothing recompiles.
        processor: the checkpoint's processor.
        config: see `SamplingConfig`; may be replaced too.

    Attributes:
        usage: what prefill and decoding did so far.
    """

    def __init__(self, model: QwenVL, processor: "Processor", config: SamplingConfig | None = None):
        self._model, self.processor, self.config = model, processor, config or SamplingConfig()
        self._idle: tuple[tuple, Table] | None = None
        self.usage = Usage()
        vocabulary = model.config.text.vocab_size
        self.automaton = compile_automaton(processor.tokenizer, vocabulary, processor.eos_token_ids)

    @property
    def model(self) -> QwenVL:
        """The weights in use."""
        return self._model

    @model.setter
    def model(self, model: QwenVL) -> None:
        self._model, self._idle = model, None  # what other weights have computed is of no use

    def __call__(self, conversations: Sequence[list[dict]]) -> list[Answer]:
        """One answer per conversation (HF chat messages); see `rollout`."""
        return [group[0] for group in self.rollout(conversations, branches=1)]

    def rollout(self, conversations: Sequence[list[dict]], branches: int) -> list[list[Answer]]:
        """`branches` answers per conversation; each prompt is computed once.

        A conversation that cannot be a prompt (a video that cannot be read, too many tokens) has answers whose
        `finish_reason` is `refused`; the others are answered.
        """
        return _in_order(self.stream(map(self._prompt, conversations), branches))

    def generate(
        self,
        prompts: Sequence[Encoded],
        branches: int,
        *,
        inputs: ModelInputs | None = None,
        features: VisionFeatures | None = None,
        seed: int | None = None,
        on_text: OnText | None = None,
    ) -> list[list[Answer]]:
        """`branches` answers for each prompt, in the order of the prompts.

        Args:
            prompts: encoded prompts; at most as many as `inputs` has rows, if that is given.
            branches: answers per prompt, `G`.
            inputs: the prompts collated, if the caller already has them: they run at once, a slot for each row.
            features: the frozen tower's features of `inputs`, computed earlier.
            seed: replaces the config's.
            on_text: told of text as it is written: the prompt's number, the branch's, and what has been added.
        """
        collated = None if inputs is None else Collated(inputs, features)
        return _in_order(self._stream(prompts, branches, seed, collated, on_text))

    def stream(
        self, prompts: Iterable[Encoded | VideoAutoError], branches: int = 1, *, on_text: OnText | None = None
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Answers in the order in which they are finished.

        Args:
            prompts: encoded prompts; taken one by one as slots become free, so they may be made while others run. An
                error in the place of one becomes its `refused` answers.
            branches: answers per prompt, `G`.
            on_text: see `generate`.

        Yields:
            The prompt's number, counted from 0, and its answers.
        """
        return self._stream(prompts, branches, None, None, on_text)

    def _stream(
        self,
        prompts: Iterable[Encoded | VideoAutoError],
        branches: int,
        seed: int | None,
        collated: Collated | None,
        on_text: OnText | None,
    ) -> Iterator[tuple[int, list[Answer]]]:
        config, model = self.config, self._model
        check_whole("branches", branches, 1)
        weights = rollout_weights(model) if config.layout == "rollout" else model
        writing = Writing(weights, self.automaton, settings(config, self._stop_ids()))
        sizes, table = self._table(branches, writing.shards, collated)
        schedule = Schedule(
            table,
            enumerate(prompts),
            seed=config.seed if seed is None else seed,
            reuse=config.reuse_prefixes,
            collated=collated,
            usage=self.usage,
            watch=Watch(self.processor.decode, config.stop, on_text) if config.stop or on_text else None,
        )
        for finished in schedule.run(writing):
            yield finished.position, self._answers(finished, branches, config.stop)
        if config.reuse_prefixes and self._model is model:
            self._idle = sizes, table

    def _table(self, branches: int, shards: int, collated: Collated | None) -> tuple[tuple, Table]:
        """The slots, those of the last call if they are of the same sizes, and these sizes.

        There are a few more of them than asked for where that is no multiple of the shards: rows that cannot be split
        evenly would all be computed by every device.
        """
        config = self.config
        slots = -(-config.prompts // shards) * shards if collated is None else len(collated.inputs.token_ids)
        sizes = slots, branches, config.max_new_tokens, config.prompt_lengths, config.prefill_tokens, config.cache_dtype
        kept, self._idle = self._idle, None
        if kept is not None and kept[0] == sizes:
            return kept
        return sizes, Table(config, slots, branches, self.processor.pad_token_id, shards)

    def _prompt(self, messages: list[dict]) -> Encoded | VideoAutoError:
        try:
            return self.processor.encode(messages)
        except (DataError, MediaError) as error:
            return error

    def _stop_ids(self) -> set[int]:
        """The checkpoint's stop tokens, and the stop texts that are special tokens: decoded text holds none."""
        added = self.processor.tokenizer.added_tokens_decoder.items()
        special = {token for token, text in added if text.special and str(text) in self.config.stop}
        return special | set(self.processor.eos_token_ids)

    def _answers(self, finished: Finished, branches: int, stop: Sequence[str]) -> list[Answer]:
        written = finished.branches
        if written is None:
            return [refusal(finished.reason)] * branches
        begun = begun_response(finished.prompt)
        return [self._answer(begun, written, g, finished.seconds, stop) for g in range(branches)]

    def _answer(self, begun: str, branches: Branches, g: int, seconds: float, stop: Sequence[str]) -> Answer:
        length, first = int(branches.length[g]), int(branches.first_tokens[g])
        text, count, stopped = cut_at(branches.tokens[g, :length], stop, self.processor.decode)
        confidence, finish = float(branches.gate.confidence[g]), int(branches.finish[g])
        if stopped:  # what was written behind it before the host saw it never was, nor was the gate's exit
            finish = STOPPED
            first, confidence = (first, confidence) if first <= count else (0, -1.0)
        return make_answer(
            begun + text,
            branches.tokens[g, :count],
            branches.log_probs[g, :count],
            branches.sampling_log_probs[g, :count],
            confidence,
            finish,
            first or count,
            seconds,
        )


def settings(config: SamplingConfig, stop_ids: Collection[int]) -> engine.Settings:
    """What of a configuration the compiled programs are told; tokens of `stop_ids` end a branch."""
    sampling = Sampling(
        temperature=jnp.float32(config.temperature),
        top_k=jnp.int32(config.top_k),
        top_p=jnp.float32(config.top_p),
        min_p=jnp.float32(config.min_p),
        repetition_penalty=jnp.float32(config.repetition_penalty),
        forced=jnp.bool_(config.forced_format),
    )
    return engine.Settings(
        sampling=sampling,
        threshold=jnp.float32(config.exit_threshold),
        max_new_tokens=jnp.int32(config.max_new_tokens),
        stop_ids=jnp.array(sorted(stop_ids) + [-1] * (-len(stop_ids) % 8), jnp.int32),  # few shapes, few programs
    )


def _in_order(stream: Iterator[tuple[int, list[Answer]]]) -> list[list[Answer]]:
    return [answers for _, answers in sorted(stream, key=lambda item: item[0])]
