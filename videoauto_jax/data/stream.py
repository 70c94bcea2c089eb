"""The endless, resumable stream of encoded prompts that training reads."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.draws import Draw, Draws, Encoder
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.order import Plan
from videoauto_jax.data.skips import LeftOut, SkipLog
from videoauto_jax.data.workers import Pool, is_crash
from videoauto_jax.distributed import together
from videoauto_jax.errors import CheckpointError, ConfigError, DataError

log = logging.getLogger(__name__)
Item = tuple[int, Sample, Encoded]

_MAX_DEATHS = 3  # of worker processes over one position
_ENDLESS = 1_000_000  # epochs
_OTHER_SEED = "Resume with the seed that the run began with, or begin a new run."
_OTHER_SAMPLES = (
    "The annotations of a data set have changed since the run began, or skipped.jsonl, which keeps what it left out, "
    "is gone: put them back, or begin a new run."
)


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """How prompts are drawn.

    Attributes:
        batch_size: prompts of one batch.
        seed: of the order. The order is upstream's: a permutation per epoch, cut into batches, the rest left out.
        shuffle: False reads the samples as they are listed.
        epochs: passes over the data; None never ends.
        workers: processes that decode and encode; 0 does it in the calling process.
        prefetch: batches kept ready ahead of the one in use.
        max_prompt_tokens: longer prompts are skipped by name.
    """

    batch_size: int
    seed: int = 42
    shuffle: bool = True
    epochs: int | None = None
    workers: int = 4
    prefetch: int = 1
    max_prompt_tokens: int | None = None


class PromptStream:
    """Iterates over batches: lists of (index into `samples`, sample, encoded prompt).

    In a job of several processes each decodes and encodes its part of a batch; then they exchange the parts, so that
    all return the whole batch.

    A sample that cannot be encoded (missing or damaged media, a prompt too long, a decoder that kills its process) is
    skipped, counted and written to `skip_log`; a uniformly drawn sample that depends on seed, epoch and position only
    stands in for it. So every batch has its full size, and whatever follows is what it would have been.

    What `next` returns is a function of (samples, config without workers and prefetch, position): neither the number
    of workers or processes nor an interruption changes it. `state` is one position, whatever their numbers.

    Args:
        samples: all of them, in every process.
        encoder: a picklable object with `encode(messages) -> Encoded`; sent once to every worker.
        skip_log: JSON-lines file for skipped samples; the main process writes it.
        left_out: samples that are not among `samples`; a new `skip_log` begins with them.

    Raises:
        ConfigError: no samples for one batch, or a batch that does not divide by the processes.
        DataError: while iterating, in all processes, 16 samples in a row that cannot be encoded.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        config: StreamConfig,
        *,
        skip_log: str | Path | None = None,
        left_out: Sequence[LeftOut] = (),
    ):
        index, count = jax.process_index(), jax.process_count()
        _check(len(samples), config, count)
        self.samples, self.config, self.skipped, self.left_out = samples, config, 0, len(left_out)
        self._encoder = encoder
        self._plan = Plan(len(samples), config.batch_size, config.seed, config.shuffle, index, count)
        self._skips = SkipLog(skip_log if index == 0 else None, left_out)
        self._position = 0
        self._deaths: dict[int, int] = {}
        self._pool: Pool | None = None

    def __len__(self) -> int:
        """Batches in one epoch."""
        return self._plan.batches_per_epoch

    def __iter__(self) -> "PromptStream":
        return self

    def __next__(self) -> list[Item]:
        if self._position >= self._end:
            self.close()
            raise StopIteration
        first, count = self._position, self._plan.local_batch
        parts = together(lambda: [self._draw(first + slot) for slot in range(count)])
        for process, part in enumerate(parts):
            for slot, draw in enumerate(part):
                self._report(dataclasses.replace(self._plan, process_index=process).locate(first + slot), draw)
        self._position = first + count
        return [(draw.index, self.samples[draw.index], draw.encoded) for part in parts for draw in part]

    def state(self) -> dict[str, int | str]:
        """Where the stream stands, for a checkpoint: JSON values, equal in all processes.

        `next_index` counts the prompts of the current epoch that have been returned, `skipped` those that others
        stood in for, from the very beginning.
        """
        epoch, batch = divmod(self._position // self._plan.local_batch, len(self))
        place = {"epoch": epoch, "next_index": batch * self.config.batch_size, "skipped": self.skipped}
        return place | {"seed": self.config.seed, "samples": self._digest}

    def restore(self, state: dict[str, int | str]) -> None:
        """Continues from a `state`, whatever the number of workers and processes it was taken with.

        Raises:
            CheckpointError: a state of other samples, another seed, or a batch size that does not lead to this point.
        """
        self._check_state(state)
        self.close()
        batch = state["epoch"] * len(self) + state["next_index"] // self.config.batch_size
        self._position, self.skipped = batch * self._plan.local_batch, state.get("skipped", 0)

    def close(self) -> None:
        """Ends the worker processes. The stream may be used on: it starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> "PromptStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def _digest(self) -> str:
        """Identity of the list of samples, apart from where their media lie."""
        digest = hashlib.sha256()
        for sample in self.samples:
            question = sample.messages[-1]["content"]
            text = question if isinstance(question, str) else [part.get("text") for part in question]
            digest.update(repr((sample.id, text, sample.answer)).encode())
        return digest.hexdigest()[:16]

    @property
    def _end(self) -> int:
        epochs = _ENDLESS if self.config.epochs is None else self.config.epochs
        return epochs * len(self) * self._plan.local_batch

    def _open(self, start: int, stop: int, workers: int, ahead: int) -> Pool:
        messages = [sample.messages for sample in self.samples]
        bound, deaths = self.config.max_prompt_tokens, dict(self._deaths)
        return Pool(Draws(messages, self._encoder, self._plan, start, stop, bound, deaths), workers, ahead)

    def _draw(self, position: int) -> Draw:
        if self._pool is None:
            ahead = self.config.prefetch * self._plan.local_batch
            self._pool = self._open(position, self._end, self.config.workers, ahead)
        try:
            return next(self._pool)
        except BaseException as error:
            self.close()
            if not (isinstance(error, RuntimeError) and is_crash(error)):
                raise
            log.warning("a data worker died (%s); trying its sample alone", error)
            return self._draw_alone(position)

    def _draw_alone(self, position: int) -> Draw:
        # The dead worker may have been ahead of this position, or a victim of memory pressure: only a process that
        # does nothing else proves that this very sample is at fault.
        for _ in range(_MAX_DEATHS):
            pool = self._open(position, position + 1, workers=1, ahead=1)
            try:
                return next(pool)
            except RuntimeError as error:
                if not is_crash(error):
                    raise
                self._deaths[position] = self._deaths.get(position, 0) + 1
            finally:
                pool.close()
        sample = self.samples[self._plan.candidate(position, 0)]
        fix = "Look for the cause in the log above, or try workers=0."
        raise DataError("data workers keep dying", where=sample.id, fix=fix)

    def _report(self, place: tuple[int, int], draw: Draw) -> None:
        epoch, position = place
        for index, reason in draw.passed_over:
            sample = self.samples[index]
            self.skipped += 1
            log.warning("skipped %s (%s): %s", sample.id, sample.media, reason)
            event = {"epoch": epoch, "position": position, "id": sample.id, "media": sample.media, "reason": reason}
            self._skips.add(event | {"substitute": self.samples[draw.index].id})

    def _check_state(self, state: dict[str, int | str]) -> None:
        here = self.state()
        for key, what, fix in (("samples", "the samples", _OTHER_SAMPLES), ("seed", "the data seed", _OTHER_SEED)):
            if state.get(key) != here[key]:
                raise CheckpointError(f"{what} differ from those of the checkpoint", where="data state", fix=fix)
        if not {"epoch", "next_index"} <= state.keys():
            raise CheckpointError("the position of the data is missing", where="data state")
        if state["next_index"] % self.config.batch_size:
            fix = f"{state['next_index']} prompts of the epoch are done: choose a batch size that divides this."
            raise CheckpointError("the batch size differs from that of the checkpoint", where="data state", fix=fix)


def _check(samples: int, config: StreamConfig, process_count: int) -> None:
    if config.batch_size < 1 or config.batch_size % process_count:
        fix = f"Choose a positive multiple of the {process_count} processes."
        raise ConfigError(f"a batch of {config.batch_size} prompts does not divide over the processes", fix=fix)
    if config.workers < 0 or config.prefetch < 0:
        raise ConfigError(f"workers={config.workers} and prefetch={config.prefetch} must not be negative")
    if samples < config.batch_size:
        fix = "Lower batch_size or add data."
        raise ConfigError(f"{samples} samples do not fill one batch of {config.batch_size} prompts", fix=fix)
