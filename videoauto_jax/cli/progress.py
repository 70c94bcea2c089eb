"""The progress bar of every long verb: steps, time left, a few live numbers."""

import datetime
import math
import time
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
        first: list[tuple[int, float]] = []  # what was done when this start began to report, and when that was

        def report(done: int, total: int, metrics: Mapping) -> None:
            if not first:
                first.append((done, time.monotonic()))
            bar.update(task, completed=done, total=total, numbers=headline(metrics))
            if not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
                line = f"{what}: {done}/{total}{_left(*first[0], done, total)}  {headline(metrics)}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield report


def _left(before: int, began: float, done: int, total: int) -> str:
    """How long the rest takes at the pace so far, once there is one."""
    if not before < done < total:
        return ""
    seconds = (time.monotonic() - began) / (done - before) * (total - done)
    return f"  {datetime.timedelta(seconds=round(seconds))} left"


def headline(metrics: Mapping) -> str:
    """The few metrics worth a glance, as `reward 2.31  kl 0.004`."""
    numbers = {label: _number(metrics[name]) for name, label in SHOWN.items() if name in metrics}
    return "  ".join(f"{label} {value:.3g}" for label, value in numbers.items() if math.isfinite(value))


def _number(value: object) -> float:
    if isinstance(value, tuple | list):
        total, count = map(float, value)
        return total / count if count else math.nan
    return float(value)
