"""Reading every prompt of a recipe once, in parallel: what is damaged, how long it is, how many tokens it makes.

Each worker is a process of its own: a decoder that crashes or hangs takes one sample with it, no more.
"""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.chat import visual_items
from videoauto_jax.data.manifest import Entry, sample_key
from videoauto_jax.data.processor import Processor
from videoauto_jax.data.vision import plan_video
from videoauto_jax.data.visuals import READERS, visual_kind, visual_source


def audit_sample(sample: Sample, processor: Processor) -> Entry:
    """Encodes one prompt exactly as training will, and looks at its video."""
    entry = Entry(sample.id, sample_key(sample, processor), sample.media)
    try:
        encoded = processor.encode(sample.messages)
        patches = 0 if encoded.vision is None else len(encoded.vision.segment_ids)
        entry = dataclasses.replace(entry, tokens=len(encoded.token_ids), patches=patches)
        for item in visual_items(sample.messages):
            if visual_kind(item) == "video":
                entry = _with_video(entry, item, processor)
    except Exception as error:  # decoders raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return dataclasses.replace(entry, reason=reason)
    return entry


def _with_video(entry: Entry, item: dict, processor: Processor) -> Entry:
    settings = processor.settings
    with READERS[processor.video_reader](visual_source(item, "video"), 1) as reader:
        info = reader.info
    sizes = {"patch_size": settings.patch_size, "merge_size": settings.merge_size}
    visual = settings.with_budget(item, "video")
    plan = plan_video(info.frames, info.fps, info.height, info.width, visual, **sizes)
    duration = round(info.frames / info.fps, 3)
    return dataclasses.replace(entry, frames=len(plan.indices), duration=duration)


def audit(
    samples: Sequence[Sample], processor: Processor, *, workers: int, timeout_s: float, examine: Callable = audit_sample
) -> Iterator[Entry]:
    """An entry for every sample, in the order in which they are done.

    Args:
        samples: what to read.
        processor: how; sent to every worker once. Its `max_prompt_tokens` should be None, so that long prompts are
            counted rather than refused.
        workers: processes.
        timeout_s: seconds for one sample, after which its process is killed and the sample is damaged.
        examine: what a worker does with `(sample, processor)`; picklable.
    """
    crew = [_Worker(processor, examine) for _ in range(min(workers, len(samples)))]
    todo = list(reversed(samples))
    try:
        while todo or any(worker.sample for worker in crew):
            for worker in crew:
                if worker.sample is None and todo:
                    worker.give(todo.pop())
            wait([worker.pipe for worker in crew if worker.sample], timeout=0.5)
            yield from (entry for worker in crew if (entry := worker.take(timeout_s)) is not None)
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process that examines samples, and is replaced when it dies or takes too long."""

    def __init__(self, processor: Processor, examine: Callable):
        self._arguments = processor, examine
        self.sample: Sample | None = None
        self._start()

    def give(self, sample: Sample) -> None:
        self.sample, self._since = sample, None
        self.pipe.send(sample)

    def take(self, timeout_s: float) -> Entry | None:
        """The entry of the sample given last, if it is done or lost."""
        if self.sample is None:
            return None
        try:
            while self.pipe.poll():
                entry = self.pipe.recv()
                if entry is not None:
                    self.sample = None
                    return entry
                self._since = time.monotonic()
            # A process counts its time from when it has taken the sample: starting one may take longer than reading it.
            if self._process.is_alive() and (self._since is None or time.monotonic() - self._since < timeout_s):
                return None
            reason = f"it took longer than {timeout_s:g} s" if self._process.is_alive() else "its process died"
        except EOFError:
            reason = "its process died"
        sample, self.sample = self.sample, None
        self.end()
        self._start()
        return Entry(sample.id, sample_key(sample, self._arguments[0]), sample.media, reason)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()


def _work(pipe: Connection, processor: Processor, examine: Callable) -> None:
    while True:
        try:
            sample = pipe.recv()
        except EOFError:  # the parent is gone
            return
        pipe.send(None)  # taken
        pipe.send(examine(sample, processor))
