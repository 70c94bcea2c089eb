"""Which sample comes when: a pure function of (samples, seed, epoch)."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int


@functools.lru_cache(maxsize=2)
def epoch_order(samples: int, seed: int, epoch: int) -> Int[np.ndarray, "samples"]:
    """The permutation of an epoch: the one that upstream's sampler draws, from one Mersenne Twister over all epochs.

    Equal to the `epoch`-th `torch.randperm(samples, generator=g)` after `g.manual_seed(seed)`: a Fisher-Yates shuffle
    whose i-th swap partner is i + (32-bit word mod (samples - i)).

    Args:
        samples: how many, at least 1.
        seed: its low 32 bits count.
        epoch: from 0.
    """
    ahead = np.arange(samples - 1)
    words = np.random.RandomState(seed & 0xFFFFFFFF).bytes(4 * len(ahead) * (epoch + 1))
    drawn = np.frombuffer(words, "<u4").astype(np.int64)[epoch * len(ahead) :]
    order = list(range(samples))
    for place, partner in enumerate((ahead + drawn % (samples - ahead)).tolist()):
        order[place], order[partner] = order[partner], order[place]
    result = np.asarray(order, np.int64)
    result.flags.writeable = False  # cached and shared
    return result


def substitute(samples: int, seed: int, epoch: int, position: int, attempt: int) -> int:
    """The sample that stands in for a damaged one, at the `attempt`-th try: uniform, and the same on every machine."""
    return int(np.random.default_rng((seed & 0xFFFFFFFF, epoch, position, attempt)).integers(samples))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which sample one host takes at each of its positions.

    Positions count one host's prompts from the start of the run. Every epoch is cut into global batches, the incomplete
    last one left out; a batch is cut into equal consecutive parts, one per host, so that the global order does not
    depend on the number of hosts.
    """

    samples: int
    batch_size: int
    seed: int
    shuffle: bool = True
    process_index: int = 0
    process_count: int = 1

    @property
    def local_batch(self) -> int:
        """Prompts of one batch on this host."""
        return self.batch_size // self.process_count

    @property
    def batches_per_epoch(self) -> int:
        return self.samples // self.batch_size

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, place in the epoch's global order) of one of this host's positions."""
        batch, slot = divmod(position, self.local_batch)
        epoch, chunk = divmod(batch, self.batches_per_epoch)
        return epoch, chunk * self.batch_size + self.process_index * self.local_batch + slot

    def candidate(self, position: int, attempt: int) -> int:
        """The sample at a position; for `attempt` > 0 the one that stands in when the earlier ones are damaged."""
        epoch, place = self.locate(position)
        if attempt:
            return substitute(self.samples, self.seed, epoch, place, attempt)
        return int(epoch_order(self.samples, self.seed, epoch)[place]) if self.shuffle else place
