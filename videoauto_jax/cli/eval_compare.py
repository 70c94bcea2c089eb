"""`videoauto eval compare A B`: how far two evaluations are apart, and how sure that is."""

import dataclasses
from pathlib import Path
from typing import Literal

import rich
from rich.table import Table

from videoauto_jax.errors import UsageError
from videoauto_jax.eval.comparison import compare
from videoauto_jax.eval.results import Results
from videoauto_jax.files import write_json
from videoauto_jax.protocol.grammar import Profile


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """A comparison of two evaluations.

    Attributes:
        a, b: their folders; differences are b - a.
        mode: the mode that counts on both sides; null: each evaluation's own.
        profile: grading rules for both sides; null: those of a.
        resamples: bootstrap resamples.
        seed: of the resampling.
        output: a JSON file for the result; null for none.
    """

    a: str
    b: str
    mode: Literal["first", "second", "auto"] | None = None
    profile: Profile | None = None
    resamples: int = 1000
    seed: int = 0
    output: str | None = None


CONFIG = CompareConfig
POSITIONAL = ("a", "b")
HELP = "Compares two evaluations on the samples both answered: differences with paired bootstrap intervals."


def run(config: CompareConfig, *, force: bool) -> None:
    """Prints a line per benchmark.

    Raises:
        UsageError: there is a file where the result would go, and no `force`; or a side that did not run so that the
            mode can be scored.
    """
    if config.output and Path(config.output).exists() and not force:
        fix = "Name another output=, or add --force to replace it"
        raise UsageError("this file exists", where=config.output, fix=fix)
    a, b = Results(config.a), Results(config.b)
    for one in (a, b) if config.mode else ():
        one.require(config.mode)
    sides = [(one.records, config.mode or one.config.headline_mode, one.config.sampling.threshold) for one in (a, b)]
    profile = config.profile or a.config.profile
    found = compare(*sides, profile, resamples=config.resamples, seed=config.seed)
    if config.output:
        write_json(config.output, found)
    table = Table("", "A", "B", "B - A", "95 %", "tokens A", "tokens B", "n", "videos", box=None, pad_edge=False)
    for name, one in found.items():
        interval = "–" if one["low"] is None else f"{one['low']:+.1f} … {one['high']:+.1f}"
        numbers = [_cell(one[key], form) for key, form in (("a", ".1f"), ("b", ".1f"), ("difference", "+.1f"))]
        tokens = [f"{one[key]:.1f}" for key in ("tokens_a", "tokens_b")]
        table.add_row(name, *numbers, interval, *tokens, str(one["n"]), str(one["videos"]))
    rich.get_console().print(table)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
