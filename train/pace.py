"""How far a run is, how long its phases take, and how fast it works: what every trainer tells besides its losses."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax

from videoauto_jax.data.stream import PromptStream
from videoauto_jax.models.config import TextConfig
from videoauto_jax.train.flops import group_update_flops, utilisation

Pairs = dict[str, tuple[float, float]]


class Clock:
    """Seconds spent in named phases, and since the clock was made."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @property
    def total(self) -> float:
        """Seconds since the clock was made, whatever they were spent on."""
        return time.perf_counter() - self._start

    def pairs(self) -> Pairs:
        """The phases as metrics."""
        return {f"seconds/{phase}": (seconds, 1.0) for phase, seconds in self.seconds.items()}


def position(stream: PromptStream, rate: float) -> Pairs:
    """Where a run stands: learning rate, epoch, and how many samples it does without."""
    state = stream.state()
    epoch = state["epoch"] + state["next_index"] / len(stream.samples)
    counts = {"data/left_out": stream.left_out, "data/skipped": stream.skipped}
    values = {"learning_rate": rate, "epoch": epoch, **counts}
    return {name: (value, 1.0) for name, value in values.items()}


def speed(
    counters: dict[str, float],
    text: TextConfig,
    prompts: Sequence[int],
    branches: Sequence[Sequence[int]],
    clock: Clock,
    *,
    passes: int = 1,
    adapters: bool = False,
) -> Pairs:
    """Tokens so far and per second, prompts counted once; MFU of the update phase alone, where the peak is known.

    Args:
        counters: `num_tokens` is counted on.
        text: the decoder.
        prompts: tokens of each prompt that was trained on.
        branches: tokens of its branches.
        clock: has the phase `update`, and began with the unit of work.
        passes: how often the update went over them.
        adapters: only adapters train.
    """
    tokens = sum(prompts) + sum(map(sum, branches))
    counters["num_tokens"] += tokens
    told = {"num_tokens": counters["num_tokens"], "time/tokens_per_second": tokens / clock.total}
    work = passes * group_update_flops(text, prompts, branches, adapters=adapters)
    mfu, memory = utilisation(work, clock.seconds["update"]), jax.local_devices()[0].memory_stats()
    told |= {} if mfu is None else {"time/mfu": mfu}
    told |= {"memory/peak_gib": memory["peak_bytes_in_use"] / 2**30} if memory else {}
    return {name: (value, 1.0) for name, value in told.items()}
