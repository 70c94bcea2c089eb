"""The progress bar of every long verb: steps, time left, a few live numbers."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int, Mapping], None]
"""Told steps done, steps in all, and metrics: numbers or (sum, count) pairs."""

# What the bar shows of the metrics, in this order, and under which name.
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "completions/mean_length": "length",
    "accuracy": "accuracy",
    "tokens": "tokens",
    "think_ratio": "thinks",
}


@contextmanager
def progress_bar(what: str, *, console: Console | None = None) -> Iterator[Report]:
    """A bar that stands while the block runs; yields the function to report to.

    Where the output is no terminal nothing is drawn; a line is printed for every tenth of the way instead.

    Args:
        what: stands before the bar.
        console: by default rich's global one, so that lines printed through it appear above the bar.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[numbers]}", justify="left"),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    console = console or rich.get_console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, numbers="")

        def report(done: int, total: int, metrics: Mapping) -> None:
            bar.update(task, completed=done, total=total, numbers=headline(metrics))
            if not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
                console.print(
                    f"{what}: {done}/{total}  {headline(metrics)}", markup=False, highlight=False, soft_wrap=True
                )

        yield report


def headline(metrics: Mapping) -> str:
    """The few metrics worth a glance, as `reward 2.31  kl 0.004`."""
    numbers = {label: _number(metrics[name]) for name, label in SHOWN.items() if name in metrics}
    return "  ".join(f"{label} {value:.3g}" for label, value in numbers.items() if math.isfinite(value))


def _number(value: object) -> float:
    if isinstance(value, tuple | list):
        total, count = map(float, value)
        return total / count if count else math.nan
    return float(value)
