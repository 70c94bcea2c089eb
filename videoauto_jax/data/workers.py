"""The pool of worker processes behind a prompt stream."""

import math
import os
import signal
import threading
import time

import grain
from absl import flags

from videoauto_jax.data.draws import Draw, Draws

_CRASH = "terminated unexpectedly"  # how grain says that a worker process died


class Pool:
    """The draws of a source, in order; the order does not depend on the number of workers.

    Elements are single prompts: nothing that drops or groups elements comes before the processes are interleaved.

    Args:
        workers: processes; 0 encodes in the calling process when a draw is asked for.
        ahead: draws kept ready, over all workers.
    """

    def __init__(self, draws: Draws, workers: int, ahead: int = 1):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which only absl's own entry point parses
        buffer = max(1, math.ceil(ahead / max(1, workers)))
        # grain's default of 500 elements read ahead by threads is meant for kilobytes, not for decoded videos.
        dataset = grain.MapDataset.source(draws).to_iter_dataset(grain.ReadOptions(0, 0))
        options = grain.MultiprocessingOptions(workers, buffer)
        self._iterator = iter(dataset.mp_prefetch(options, worker_init_fn=_follow_parent))

    def __next__(self) -> Draw:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the worker processes, soon.

        A worker whose queue is full waits for a reader, and grain waits half a minute before it kills the worker. The
        caller goes on meanwhile; only the end of the program waits, since grain's own clean-up there is not to be met.
        """
        if hasattr(self._iterator, "close"):
            threading.Thread(target=self._iterator.close).start()


def is_crash(error: RuntimeError) -> bool:
    """Whether an error of `Pool` means that a worker process died, rather than raised."""
    return _CRASH in str(error)


def _follow_parent(_worker: int, _workers: int) -> None:
    # A parent killed with SIGKILL cannot stop its workers: they would keep their memory and wait for ever.
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to end
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
