"""What the sampler is given in all of its benchmarks."""

import copy
import time

import numpy as np

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor


def prompt(rng: np.random.Generator, length: int, vocabulary: int) -> Encoded:
    """Random text of so many tokens."""
    positions = np.stack([np.arange(length, dtype=np.int32)] * 3)
    ids = rng.integers(32, vocabulary, length).astype(np.int32)
    return Encoded(ids, positions, np.full(length, -1, np.int32), None, length, "")


def endless(processor: Processor) -> Processor:
    """The processor without stop tokens: every branch writes all it may."""
    other = copy.copy(processor)
    other.eos_token_ids = ()
    return other


def timed(act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
