"""How responses are written."""

import dataclasses
import numbers
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from videoauto_jax.errors import ConfigError, ModelError
from videoauto_jax.models.config import read_json
from videoauto_jax.sampling.answer import Mode

CacheDtype = Literal["model", "int8", "float8_e4m3fn"]
Layout = Literal["rollout", "train"]
_LEAST = {"max_new_tokens": 1, "prompts": 1, "prefill_tokens": 1, "top_k": 0}
_TINY, _HUGE = 1e-30, 1e30  # on the device they are float32, and are multiplied with logits
_RANGES = {
    "threshold": (lambda x: x >= 0, "a number of at least 0"),
    "temperature": (lambda x: 0 <= x <= _HUGE, f"a number of at least 0 and at most {_HUGE:g}"),
    "top_p": (lambda x: _TINY <= x <= 1, f"a number of at least {_TINY:g} and at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "a number of at least 0 and at most 1"),
    "repetition_penalty": (lambda x: _TINY <= x <= _HUGE, f"a number more than 0 and at most {_HUGE:g}"),
}


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are written.

    Attributes:
        mode: `first` ends a branch after its first answer, `auto` does so where its confidence reaches `threshold`,
            `second` never; `record` is `second`, for scoring every mode from one pass.
        threshold: least confidence, exp(mean log p), that makes thinking unnecessary in `auto`; more than 1 is none.
        max_new_tokens: most tokens of a branch.
        temperature: 0 is greedy.
        top_k, top_p, min_p: which tokens are drawn from; see `draw.Sampling`. Without a meaning at temperature 0.
        repetition_penalty: on tokens of the prompt and the branch; 1 for none. Public Qwen2.5-VL checkpoints ask for
            1.05: see `checkpoint_defaults`.
        stop: texts that end a branch, besides the checkpoint's stop tokens; a special token may be among them.
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
        layout: how the decoder's weights lie while branches are written. `rollout`: copied for the time of a call, so
            that no step gathers them over `fsdp` or rounds them to the dtype in which it computes; not copied where
            nothing would change. `train`: as they lie, for models that do not fit otherwise.
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
    cache_dtype: CacheDtype = "model"
    layout: Layout = "rollout"

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            fix = f"Use one of {', '.join(get_args(Mode))}"
            raise ConfigError(f"there is no mode {self.mode!r}", fix=fix)
        for name, kind in (("cache_dtype", CacheDtype), ("layout", Layout)):
            known = get_args(kind)
            _check(name, getattr(self, name), getattr(self, name) in known, f"one of {', '.join(known)}")
        for name, least in _LEAST.items():
            check_whole(name, getattr(self, name), least)
        _check("seed", self.seed, _is(self.seed, numbers.Integral), "a whole number")
        for name, (holds, rule) in _RANGES.items():
            value = getattr(self, name)
            _check(name, value, _is(value, numbers.Real) and holds(value), rule)
        texts = isinstance(self.stop, (tuple, list)) and all(isinstance(text, str) and text for text in self.stop)
        _check("stop", self.stop, texts, "a list of texts of at least one character")
        for name in ("forced_format", "reuse_prefixes"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")
        self._check_ladder()

    def _check_ladder(self) -> None:
        ladder = self.prompt_lengths
        several = isinstance(ladder, (tuple, list)) and len(ladder) > 0
        holds = ladder is None or (several and all(_is(rung, numbers.Integral) and rung > 0 for rung in ladder))
        _check("prompt_lengths", ladder, holds, "null, or at least one length, all of them whole numbers above 0")

    @property
    def exit_threshold(self) -> float:
        """The confidence at which the compiled loop ends a branch."""
        return {"first": -np.inf, "auto": self.threshold}.get(self.mode, np.inf)


def checkpoint_defaults(folder: str | Path) -> dict[str, float]:
    """What a checkpoint's generation_config.json says of temperature, top_k, top_p, min_p and repetition_penalty.

    Temperature is 0 unless it says `do_sample: true`, as in transformers; what it does not name is left out.

    Raises:
        ModelError: the file is broken, or a value makes no sense.
    """
    path = Path(folder) / "generation_config.json"
    stated = read_json(path)
    if stated is None:
        return {}
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    found = {name: stated[name] for name in names if stated.get(name) is not None}
    try:
        SamplingConfig(**found)
    except ConfigError as error:
        raise ModelError(error.what, where=path, fix=error.fix) from None
    return found if stated.get("do_sample") else {**found, "temperature": 0.0}


def check_whole(name: str, value: object, least: int) -> None:
    """
    Raises:
        ConfigError: the value is no whole number, less than `least`, or more than 32 bits hold.
    """
    holds = _is(value, numbers.Integral) and least <= value < 2**31
    _check(name, value, holds, f"a whole number of at least {least}, and less than 2^31")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value!r}", fix=f"Make it {rule}")
