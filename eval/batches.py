"""Held-out samples as fixed batches of encoded prompts, decoded ahead of their use."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.draws import Encoder
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.errors import ConfigError, ModelError

Slot = tuple[Sample, Encoded | str]
"""A sample and its prompt, or the reason why it has none."""


def cut(samples: Sequence[Sample], size: int, done: set[str]) -> list[list[Sample]]:
    """The batches that hold a sample not done yet.

    A batch is whole even if part of it is done: what a sample is computed beside, and with it its last bits, does not
    depend on where an earlier start was interrupted.
    """
    batches = [list(samples[start : start + size]) for start in range(0, len(samples), size)]
    return [batch for batch in batches if any(sample.id not in done for sample in batch)]


def encode_ahead(
    batches: Sequence[Sequence[Sample]], encoder: Encoder, *, workers: int = 4, prefetch: int = 1
) -> Iterator[list[Slot]]:
    """The batches in order; threads encode `prefetch` of them while one is in use. Close what is not read to its end.

    Raises:
        ModelError, ConfigError: what is wrong with every sample alike.
    """
    threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="encode")
    waiting: deque[list[tuple[Sample, Future]]] = deque()
    try:
        for batch in batches:
            waiting.append([(sample, threads.submit(_encode, encoder, sample)) for sample in batch])
            if len(waiting) > prefetch:
                yield _results(waiting.popleft())
        while waiting:
            yield _results(waiting.popleft())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _results(batch: list[tuple[Sample, Future]]) -> list[Slot]:
    return [(sample, future.result()) for sample, future in batch]


def _encode(encoder: Encoder, sample: Sample) -> Encoded | str:
    try:
        return encoder.encode(sample.messages)
    except (ModelError, ConfigError):
        raise
    except Exception as error:  # decoders raise anything; one damaged file must not end an evaluation
        return f"{type(error).__name__}: {error}"
