"""Numbers of a run: exact accumulation of (sum, count) pairs, and where they are written.

Every metric is a pair until it is printed. Adding pairs over microbatches, devices and steps and dividing once is the
exact mean over all tokens (or completions, or groups), however they were split.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import rich
from rich.console import Console

from videoauto_jax.distributed import is_main
from videoauto_jax.errors import UsageError
from videoauto_jax.train.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter, WandbWriter

Pairs = dict[str, tuple[object, object]]

# How two pairs of one name become one. A word `min` or `max` in the last part of the name keeps the extreme pair
# (`clip_ratio/low_min`, `completions/max_length`); these few state where the run stands; all others add up.
LATEST = frozenset({"num_tokens", "learning_rate", "epoch"})
EXTREME = re.compile(r"(?:^|_)(min|max)(?:_|$)")


def reduction(name: str) -> str:
    """Returns how a metric merges: mean, min, max or latest."""
    if name in LATEST:
        return "latest"
    extreme = EXTREME.search(name.rsplit("/", 1)[-1])
    return extreme.group(1) if extreme else "mean"


def merge(earlier: Mapping, later: Mapping, *, where=np.where) -> Pairs:
    """Merges two sets of pairs; a name in one only is kept, a pair with count 0 says nothing.

    Args:
        where: `jnp.where` inside a compiled function, where the pairs are traced.
    """
    merged = dict(earlier)
    for name, pair in later.items():
        merged[name] = _merge_pair(reduction(name), merged[name], pair, where) if name in merged else pair
    return merged


class Metrics:
    """Accumulates pairs on the host in float64."""

    def __init__(self):
        self._pairs: Pairs = {}

    def add(self, metrics: Mapping) -> None:
        """Merges pairs, or plain numbers (counted once); waits for device arrays."""
        fetched = jax.device_get(dict(metrics))
        self._pairs = merge(self._pairs, {name: _as_pair(value) for name, value in fetched.items()})

    def merge(self, other: "Metrics") -> None:
        """Merges what `other` accumulated after this."""
        self._pairs = merge(self._pairs, other._pairs)

    def values(self) -> dict[str, float]:
        """Returns sum / count of every metric; NaN where nothing was counted."""
        return {name: float(total / count) if count else float("nan") for name, (total, count) in self._pairs.items()}

    def pairs(self) -> Pairs:
        """Returns the (sum, count) pairs themselves."""
        return dict(self._pairs)

    def clear(self) -> None:
        """Forgets everything, for the next interval."""
        self._pairs = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.values().items())


class MetricsLogger:
    """Writes the metrics of steps to `metrics.jsonl`, to TensorBoard and to the console, on the first process only.

    A metric that cannot be written (full disk) is reported on the console and never ends the run.
    """

    def __init__(
        self,
        folder: str | Path,
        tensorboard: bool = True,
        *,
        lines: bool = True,
        console: Console | None = None,
        wandb: str | None = None,
    ):
        """Opens the writers; an existing `metrics.jsonl` is continued.

        Args:
            folder: of the run; made if missing.
            lines: print a line for every step.
            console: of the progress display, if the run has one.
            wandb: project of Weights & Biases to log to as well.

        Raises:
            UsageError: the folder cannot be written, or the package wandb is missing.
        """
        self._console = console or rich.get_console()
        printed = self._console if lines else None
        self._writers = _writers(Path(folder), tensorboard, printed) if is_main() else []
        if wandb is not None and self._writers:
            self._writers.append(WandbWriter(Path(folder), wandb))
        self._failing: set[str] = set()

    def log(self, step: int, metrics: "Mapping | Metrics") -> None:
        """Writes one step: pairs, plain numbers, or what a `Metrics` holds."""
        values = _values(metrics)
        for writer in self._writers:
            self._attempt(writer, step, values)

    def rewind(self, step: int) -> None:
        """Forgets what was logged after `step`, the step just restored, so that no step appears twice."""
        for writer in self._writers:
            writer.rewind(step)

    def complain(self, text: str) -> None:
        """Prints a line that must not be overlooked."""
        if is_main():
            self._console.print(text, style="bold red", markup=False, soft_wrap=True)

    def close(self) -> None:
        """Flushes and closes every writer."""
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _attempt(self, writer, step: int, values: dict[str, float]) -> None:
        name = type(writer).__name__
        try:
            writer.write(step, values)
            self._failing.discard(name)
        except OSError as error:
            if name not in self._failing:
                self.complain(f"metrics of step {step} were not written: {error}")
            self._failing.add(name)


def _writers(folder: Path, tensorboard: bool, console: Console | None) -> list:
    try:
        writers: list = [JsonlWriter(folder / "metrics.jsonl")]
    except OSError as error:
        raise UsageError(f"cannot write metrics: {error.strerror}", where=folder, fix="Use another folder") from error
    writers += [ConsoleWriter(console)] if console else []
    return [*writers, TensorBoardWriter(folder / "tensorboard")] if tensorboard else writers


def _values(metrics: "Mapping | Metrics") -> dict[str, float]:
    if isinstance(metrics, Metrics):
        return metrics.values()
    single = Metrics()
    single.add(metrics)
    return single.values()


def _as_pair(value) -> tuple[np.float64, np.float64]:
    total, count = value if isinstance(value, tuple | list) else (value, 1.0)
    return np.float64(total), np.float64(count)


def _merge_pair(kind: str, earlier: tuple, later: tuple, where) -> tuple:
    (a, m), (b, n) = earlier, later
    if kind == "mean":
        return a + b, m + n
    if kind == "latest":
        use_later = n > 0
    else:
        # a/m against b/n without dividing, since counts may be 0.
        better = b * m < a * n if kind == "min" else b * m > a * n
        use_later = (n > 0) & ((m <= 0) | better)
    return where(use_later, b, a), where(use_later, n, m)
