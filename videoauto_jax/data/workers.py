"""The pool of worker processes behind a prompt stream."""

import functools
import math
import os
import tempfile
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
        self._open = tempfile.NamedTemporaryFile(prefix="videoauto-workers-")
        init = functools.partial(_follow_parent, open_file=self._open.name)
        self._iterator = iter(dataset.mp_prefetch(options, worker_init_fn=init))

    def __next__(self) -> Draw:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the worker processes."""
        self._open.close()
        if hasattr(self._iterator, "close"):
            self._iterator.close()


def is_crash(error: RuntimeError) -> bool:
    """Whether an error of `Pool` means that a worker process died, rather than raised."""
    return _CRASH in str(error)


def _follow_parent(_worker: int, _workers: int, open_file: str) -> None:
    # A parent killed with SIGKILL cannot stop its workers: they would keep their memory and wait for ever. And a worker
    # whose queue is full when the pool is closed waits for a reader, until grain kills it half a minute later; it is told
    # by a file, since grain pickles this function, which no lock or event survives.
    threading.Thread(target=_watch, args=(os.getppid(), open_file), daemon=True).start()


def _watch(parent: int, open_file: str) -> None:
    while os.getppid() == parent and os.path.exists(open_file):
        time.sleep(0.2)
    os._exit(1)
