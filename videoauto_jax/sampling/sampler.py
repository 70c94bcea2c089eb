"""From chat messages to answers: batches of prompts through the two device programs."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import jax
import jax.numpy as jnp
import numpy as np

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.errors import ConfigError
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.sampling import engine
from videoauto_jax.sampling.answer import Answer, Mode, make_answer

if TYPE_CHECKING:
    from videoauto_jax.data.processor import Processor


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are written.

    Attributes:
        mode: `first` ends a branch after its first answer, `auto` does so where its confidence reaches `threshold`,
            `second` never; `record` is `second`, for scoring every mode from one pass.
        threshold: least confidence, exp(mean log p), that makes thinking unnecessary in `auto`.
        max_new_tokens: most tokens of a branch.
        temperature: 0 is greedy.
        seed: with the prompt and the branch's number it determines a branch's tokens.
        prompts: prompts that run at once.
    """

    mode: Mode = "auto"
    threshold: float = 0.97
    max_new_tokens: int = 4096
    temperature: float = 0.0
    seed: int = 0
    prompts: int = 8

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            fix = f"Use one of {', '.join(get_args(Mode))}"
            raise ConfigError(f"there is no mode {self.mode!r}", where="sampling", fix=fix)
        if self.max_new_tokens < 1 or self.prompts < 1 or self.temperature < 0:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens}, prompts={self.prompts}, temperature={self.temperature}",
                where="sampling",
                fix="The first two are at least 1, the temperature at least 0",
            )

    @property
    def exit_threshold(self) -> float:
        """The confidence at which the compiled loop ends a branch."""
        return {"first": -np.inf, "auto": self.threshold}.get(self.mode, np.inf)


class Sampler:
    """Writes answers with one model.

    Args:
        model: the model. `sampler.model` may be replaced by one of the same shapes; nothing recompiles.
        processor: the checkpoint's processor.
        config: see `SamplingConfig`.
    """

    def __init__(self, model: QwenVL, processor: "Processor", config: SamplingConfig | None = None):
        self.model, self.processor, self.config = model, processor, config or SamplingConfig()
        vocabulary = model.config.text.vocab_size
        self.automaton = compile_automaton(processor.tokenizer, vocabulary, processor.eos_token_ids)

    def __call__(self, conversations: Sequence[list[dict]]) -> list[Answer]:
        """One answer per conversation (HF chat messages)."""
        return [group[0] for group in self.rollout(conversations, branches=1)]

    def rollout(self, conversations: Sequence[list[dict]], branches: int) -> list[list[Answer]]:
        """`branches` answers per conversation; each prompt is computed once."""
        groups: list[list[Answer]] = []
        for start in range(0, len(conversations), self.config.prompts):
            batch = conversations[start : start + self.config.prompts]
            groups += self.generate([self.processor.encode(messages) for messages in batch], branches)
        return groups

    def generate(
        self,
        prompts: Sequence[Encoded],
        branches: int,
        *,
        inputs: ModelInputs | None = None,
        features: VisionFeatures | None = None,
        seed: int | None = None,
    ) -> list[list[Answer]]:
        """`branches` answers for each of at most `config.prompts` prompts, in one batch.

        Args:
            prompts: encoded prompts.
            branches: answers per prompt, `G`.
            inputs: the prompts collated, if the caller already has them.
            features: the frozen tower's features of `inputs`, computed earlier.
            seed: replaces the config's.
        """
        config = self.config
        if not prompts:
            return []
        if inputs is None:
            # A short last batch repeats its first prompt rather than compiling for another number of rows.
            inputs = self.processor.collate([*prompts, *[prompts[0]] * (config.prompts - len(prompts))])
        rows = inputs.token_ids.shape[0]
        padded = [*prompts, *[prompts[0]] * (rows - len(prompts))]
        position = np.array([prompt.next_position for prompt in padded], np.int32)
        cache, logits = engine.prefill(self.model, inputs, position, features)
        keys = _keys(padded, branches, config.seed if seed is None else seed)
        state = engine.start(cache, logits, keys, branches=branches, slots=config.max_new_tokens)
        state = engine.decode(
            self.model, cache, state, self.automaton, self._settings(), jnp.int32(config.max_new_tokens)
        )
        return self._answers(state, len(prompts))

    def _settings(self) -> engine.Settings:
        config = self.config
        return engine.Settings(
            temperature=jnp.float32(config.temperature),
            threshold=jnp.float32(config.exit_threshold),
            max_new_tokens=jnp.int32(config.max_new_tokens),
            stop_ids=jnp.array(sorted(self.processor.eos_token_ids), jnp.int32),
        )

    def _answers(self, state: engine.DecodeState, count: int) -> list[list[Answer]]:
        fields = ("tokens", "log_probs", "sampling_log_probs", "length", "first_tokens", "finish")
        host = jax.device_get({name: getattr(state, name) for name in fields} | {"confidence": state.gate.confidence})
        groups = host["tokens"].shape[1]
        return [[self._answer(host, b, g) for g in range(groups)] for b in range(count)]

    def _answer(self, host: dict[str, np.ndarray], b: int, g: int) -> Answer:
        length = int(host["length"][b, g])
        tokens = host["tokens"][b, g, :length]
        return make_answer(
            self.processor.decode(tokens),
            tokens,
            host["log_probs"][b, g, :length],
            host["sampling_log_probs"][b, g, :length],
            float(host["confidence"][b, g]),
            int(host["finish"][b, g]),
            int(host["first_tokens"][b, g]) or length,
        )


def _keys(prompts: Sequence[Encoded], branches: int, seed: int) -> np.ndarray:
    """A 32-bit seed per branch from (seed, prompt, branch), whatever else is in the batch."""
    keys = np.empty((len(prompts), branches), np.uint32)
    for b, prompt in enumerate(prompts):
        digest = zlib.crc32(np.ascontiguousarray(prompt.token_ids, np.int32).tobytes())
        if prompt.vision is not None:
            digest = zlib.crc32(np.ascontiguousarray(prompt.vision.patches).tobytes(), digest)
        keys[b] = [zlib.crc32(f"{seed}/{branch}".encode(), digest) for branch in range(branches)]
    return keys
