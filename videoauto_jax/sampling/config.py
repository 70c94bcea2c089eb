"""How responses are written."""

import dataclasses
from typing import get_args

import numpy as np

from videoauto_jax.errors import ConfigError
from videoauto_jax.sampling.answer import Mode


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
        prompts: prompts that run at once, each with all its branches; those that wait take the place of those that end.
        prompt_lengths: ladder of lengths to which prompts are padded; a prompt beyond its end is refused. Null: powers
            of two and the steps half-way between, without an end.
        prefill_tokens: tokens of a prompt that go through the model at once; longer ones go in pieces.
        reuse_prefixes: the prompts that ran last stay on the device, so that another question about the same video
            costs only the question.
    """

    mode: Mode = "auto"
    threshold: float = 0.97
    max_new_tokens: int = 4096
    temperature: float = 0.0
    seed: int = 0
    prompts: int = 8
    prompt_lengths: tuple[int, ...] | None = None
    prefill_tokens: int = 8192
    reuse_prefixes: bool = True

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            fix = f"Use one of {', '.join(get_args(Mode))}"
            raise ConfigError(f"there is no mode {self.mode!r}", where="sampling", fix=fix)
        counts = {name: getattr(self, name) for name in ("max_new_tokens", "prompts", "prefill_tokens")}
        for name, value in counts.items():
            _check(name, value, value >= 1, "at least 1")
        _check("temperature", self.temperature, self.temperature >= 0, "at least 0")

    @property
    def exit_threshold(self) -> float:
        """The confidence at which the compiled loop ends a branch."""
        return {"first": -np.inf, "auto": self.threshold}.get(self.mode, np.inf)


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value}", where="sampling", fix=f"Make it {rule}")
