"""Continuous batching: prompts wait for slots, finished ones free theirs, and what is alike is computed once."""

import dataclasses
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int, UInt32

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.errors import VideoAutoError
from videoauto_jax.sampling import engine
from videoauto_jax.sampling.pieces import Collated
from videoauto_jax.sampling.prefixes import Trace, shared_length, trace
from videoauto_jax.sampling.slots import RUNNING, STOPPED, Branches
from videoauto_jax.sampling.table import Entry, Table, Writing
from videoauto_jax.sampling.watch import Watch

FULL = 512
"""Tokens that use a device well. Where fewer go through the model it waits for its weights, and further rows are nearly
free: an H100 does 295 bfloat16 operations in the time in which it reads a byte, which is as many tokens."""


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A prompt that waits for a slot: its number in the stream, its branches' keys, and its trace if anyone asks."""

    position: int
    prompt: Encoded
    keys: UInt32[np.ndarray, "G"]
    trace: Trace | None


@dataclasses.dataclass(frozen=True)
class Running:
    """A prompt in a slot: its number in the stream, its chat text, and when its prefill began."""

    position: int
    text: str
    since: float


@dataclasses.dataclass(frozen=True)
class Finished:
    """A prompt whose branches have all ended.

    Attributes:
        position: its number in the stream.
        branches: what is written, host arrays `[G, …]`; None if the prompt was refused.
        prompt: its chat text.
        seconds: from its prefill to its end.
        reason: why it was refused.
    """

    position: int
    branches: Branches | None
    prompt: str = ""
    seconds: float = 0.0
    reason: str = ""


@dataclasses.dataclass
class Usage:
    """What decoding did so far.

    Attributes:
        steps: decoding steps.
        slots: tokens that all branches together could have written in them.
        useful: tokens they did write.
        prefilled: prompt tokens that were computed.
        reused: prompt tokens that another prompt had computed.
        timed: wait for every prefill, so that its seconds are known.
        prefill_seconds: spent in prefill, if that is wanted.
    """

    steps: int = 0
    slots: int = 0
    useful: int = 0
    prefilled: int = 0
    reused: int = 0
    timed: bool = False
    prefill_seconds: float = 0.0


class Schedule:
    """One pass of prompts through the slots.

    Args:
        table: the slots; none of them has a branch that runs.
        prompts: with their numbers, or why there is none; taken as slots become free.
        seed: of the random keys.
        reuse: look for prefixes that slots hold already.
        collated: the first prompts, as many as there are slots, collated.
        usage: counted on.
        watch: looks at what is written, if anybody wants to.
    """

    def __init__(
        self,
        table: Table,
        prompts: Iterable[tuple[int, Encoded | VideoAutoError]],
        *,
        seed: int,
        reuse: bool,
        collated: Collated | None,
        usage: Usage,
        watch: Watch | None = None,
    ):
        self._table, self._prompts, self._seed, self._reuse = table, iter(prompts), seed, reuse
        self._collated, self._usage, self._watch = collated, usage, watch
        self._waiting: deque[Waiting] = deque()
        self._refused: list[Finished] = []
        self._exhausted = False
        self._running: dict[int, Running] = {}
        self._free = table.free
        self._quorum = 1
        self._longest = 0

    def run(self, writing: Writing) -> Iterator[Finished]:
        """Prompts in the order in which they end. What the caller does with one overlaps with the device's work."""
        done: list[Finished] = []
        while True:
            self._admit(writing)
            done, self._refused = done + self._refused, []
            if not self._running:
                yield from done
                return
            used = self._decode(writing)
            yield from done
            self._wait_for(self._quorum)
            done = self._collect(writing, used)

    def _wait_for(self, count: int) -> None:
        """Has that many prompts at hand, if there are so many left."""
        while len(self._waiting) < count and not self._exhausted:
            position, prompt = next(self._prompts, (0, None))
            if prompt is None:
                self._exhausted = True
            elif self._collated is None and (reason := self._table.refusal(prompt)):
                self._refused.append(Finished(position, None, reason=reason))
            else:
                keys = branch_keys(prompt, self._table.branches, self._seed)
                self._waiting.append(Waiting(position, prompt, keys, trace(prompt) if self._reuse else None))

    def _admit(self, writing: Writing) -> None:
        self._wait_for(len(self._free))
        while self._free and self._waiting:
            since = time.perf_counter()
            entries, positions = self._next_batch()
            self._table.fill(writing, entries, self._collated)
            self._collated = None
            self._quorum = quorum(self._table, max(len(entry.prompt.token_ids) - entry.shared for entry in entries))
            for entry, position in zip(entries, positions):
                self._running[entry.slot] = Running(position, entry.prompt.text, since)
                self._usage.prefilled += len(entry.prompt.token_ids) - entry.shared
                self._usage.reused += entry.shared
            self._longest = max(self._longest, 1)
            if self._usage.timed:
                self._table.progress()
                self._usage.prefill_seconds += time.perf_counter() - since

    def _next_batch(self) -> tuple[list[Entry], list[int]]:
        """Waiting prompts that go through the model together, in slots of their own."""
        if self._collated is not None:
            most = self._table.slots
        else:
            most = _batch_size(min(len(self._free), len(self._waiting)), self._table)
        if 2 * most > self._table.slots == len(self._free):
            self._free = self._table.free = deque(range(self._table.slots))  # whole tables need no copy
        entries: list[Entry] = []
        positions: list[int] = []
        while self._waiting and len(entries) < most:
            entry = self._entry(self._waiting[0], entries)
            if entry is None:
                break
            self._free.remove(entry.slot)
            entries.append(entry)
            positions.append(self._waiting.popleft().position)
        return entries, positions

    def _entry(self, waiting: Waiting, batch: list[Entry]) -> Entry | None:
        """A slot for a prompt; None if it has to wait for this batch, because it shares a prefix with one of it, or
        cannot go through the model beside it: long ones have a shard to themselves."""
        prompt, mine = waiting.prompt, waiting.trace
        if self._collated is not None:
            return Entry(self._free[0], prompt, mine, waiting.keys)
        source, shared = self._source(mine)
        slot = source if shared and source in self._free else self._free[0]
        entry = Entry(slot, prompt, mine, waiting.keys, source, shared)
        long = any(len(each.prompt.token_ids) - each.shared > self._table.piece for each in (entry, *batch))
        full = long and len(batch) >= self._table.shards
        alike = all(bool(other.shared) == bool(entry.shared) for other in batch)
        nearer = mine is not None and any(shared_length(mine, other.trace) > entry.shared for other in batch)
        return None if batch and (full or nearer or not alike) else entry

    def _source(self, mine: Trace | None) -> tuple[int, int]:
        """The slot that holds the most of a prompt's beginning, and how many of its tokens."""
        held = [shared_length(mine, other) if mine and other else 0 for other in self._table.traces]
        source = int(np.argmax(held))
        if held[source] and not self._table.sound(source):
            return self._source(mine)
        return source, held[source]

    def _decode(self, writing: Writing) -> engine.Used:
        wanted = min(self._quorum, len(self._waiting)) if self._exhausted else self._quorum
        enough = max(0, len(self._running) - wanted) if wanted else 0
        most = self._table.tokens if self._watch is None else self._watch.every
        return self._table.decode(writing, longest=self._longest, most=most, enough=enough)

    def _collect(self, writing: Writing, used: engine.Used) -> list[Finished]:
        finish, length = self._table.progress()
        steps, useful = int(used.steps), int(used.useful)
        self._usage.steps += steps
        self._usage.slots += steps * finish.size
        self._usage.useful += useful
        self._longest = int(length.max(where=finish == RUNNING, initial=0))
        if self._watch is not None:
            finish = self._look(writing, finish)
        ended = [slot for slot in self._running if (finish[slot] != RUNNING).all()]
        now = time.perf_counter()
        rows = self._table.take(ended) if ended else []
        self._free.extend(ended)
        over = [self._running.pop(slot) for slot in ended]
        return [Finished(one.position, row, one.text, now - one.since) for one, row in zip(over, rows)]

    def _look(self, writing: Writing, finish: Int[np.ndarray, "B G"]) -> Int[np.ndarray, "B G"]:
        """Shows what is written, and ends the branches that are to end; why each has ended, after that."""
        slots, which = list(self._running), np.zeros(finish.shape, bool)
        for slot, row in zip(slots, self._table.take(slots)):
            which[slot] = self._watch.look(self._running[slot].position, row)
        which &= finish == RUNNING
        if which.any():
            self._table.stop(writing, which)
        return np.where(which, STOPPED, finish)


def branch_keys(prompt: Encoded, branches: int, seed: int) -> UInt32[np.ndarray, "G"]:
    """A 32-bit key per branch from (seed, prompt, branch), whatever else runs."""
    digest = zlib.crc32(np.ascontiguousarray(prompt.token_ids, np.int32).tobytes())
    if prompt.vision is not None:
        digest = zlib.crc32(np.ascontiguousarray(prompt.vision.patches).data, digest)
    return np.array([zlib.crc32(f"{seed}/{branch}".encode(), digest) for branch in range(branches)], np.uint32)


def quorum(table: Table, tokens: int) -> int:
    """Slots that become free before decoding returns to fill them: more wait for longer, fewer are filled together.

    A sixteenth of them, but one for each shard, as a device without a row would wait, up to a fourth of them; and of
    prompts so short that one alone would waste its device as many as do not, up to an eighth. A quorum of `q` leaves
    `(q - 1) / 2` slots empty in the mean.

    Args:
        table: the slots.
        tokens: of a prompt, as many as go through the model.
    """
    up_to = lambda part, rows: min(table.slots // part, table.shards * rows)  # noqa: E731
    together = max(up_to(4, 1), up_to(8, FULL // max(tokens, 1)))
    return max(1, table.slots // 16, _batch_size(together, table) if together else 0)


def _batch_size(most: int, table: Table) -> int:
    """So many of `most` prompts at once: all if they fill half of the slots, else a power of four for each shard."""
    if 2 * most > table.slots:
        return most
    size = table.shards
    while 4 * size <= most:
        size *= 4
    return min(size, most)
