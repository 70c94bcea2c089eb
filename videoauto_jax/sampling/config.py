"""How responses are written."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from videoauto_jax.errors import ConfigError
from videoauto_jax.models.config import read_json
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
        top_k, top_p, min_p: which tokens are drawn from; see `draw.Sampling`. Without a meaning at temperature 0.
        repetition_penalty: on tokens of the prompt and the branch; 1 for none. Public Qwen2.5-VL checkpoints ask for
            1.05: see `checkpoint_defaults`.
        stop: texts that end a branch, besides the checkpoint's stop tokens.
        forced_format: only tokens after which the response can still become well-formed are written.
        seed: with the prompt and the branch's number it determines a branch's tokens.
        prompts: prompts that run at once, each with all its branches; those that wait take the place of those that end.
        prompt_lengths: ladder of lengths to which prompts are padded; a prompt beyond its end is refused. Null: powers
            of two and the steps half-way between, without an end.
        prefill_tokens: tokens of a prompt that go through the model at once; longer ones go in pieces.
        reuse_prefixes: the prompts that ran last stay on the device, so that another question about the same video
            costs only the question.
        cache_dtype: in what keys and values are kept, those of prompts and of branches: the model's dtype, or 8 bits
            with a scale for every token and head, which halves the memory and the reading and costs some accuracy.
    """

    mode: Mode = "auto"
    threshold: float = 0.97
    max_new_tokens: int = 4096
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    forced_format: bool = False
    seed: int = 0
    prompts: int = 8
    prompt_lengths: tuple[int, ...] | None = None
    prefill_tokens: int = 8192
    reuse_prefixes: bool = True
    cache_dtype: Literal["model", "int8", "float8_e4m3fn"] = "model"

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            fix = f"Use one of {', '.join(get_args(Mode))}"
            raise ConfigError(f"there is no mode {self.mode!r}", where="sampling", fix=fix)
        known = ("model", "int8", "float8_e4m3fn")
        _check("cache_dtype", self.cache_dtype, self.cache_dtype in known, f"one of {', '.join(known)}")
        counts = {name: getattr(self, name) for name in ("max_new_tokens", "prompts", "prefill_tokens")}
        for name, value in counts.items():
            _check(name, value, value >= 1, "at least 1")
        for name in ("temperature", "top_k"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "at least 0 and at most 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0")
        _check("stop", self.stop, all(self.stop), "texts of at least one character")

    @property
    def exit_threshold(self) -> float:
        """The confidence at which the compiled loop ends a branch."""
        return {"first": -np.inf, "auto": self.threshold}.get(self.mode, np.inf)


def checkpoint_defaults(folder: str | Path) -> dict[str, float]:
    """What a checkpoint's generation_config.json says of `temperature`, `top_k`, `top_p` and `repetition_penalty`.

    Temperature is 0 where it says `do_sample: false`; what it does not name is left out.
    """
    stated = read_json(Path(folder) / "generation_config.json") or {}
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    found = {name: stated[name] for name in names if stated.get(name) is not None}
    return found if stated.get("do_sample", True) else {**found, "temperature": 0.0}


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value}", where="sampling", fix=f"Make it {rule}")
