"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C as polite requests to stop."""

import os
import signal
import threading

from videoauto_jax.distributed import any_process


class Stopped(Exception):
    """Raised at a safe point after a stop was requested: nothing has been changed since the unit of work began."""


class StopRequest:
    """Whether a process of the job has been told to stop, while the context is open.

    A second Ctrl-C ends the process at once. Outside the main thread, where no handler can be set, nothing ever stops.

    Attributes:
        interrupted: whether Ctrl-C was a reason.
    """

    def __init__(self):
        self.interrupted = False
        self._told = False
        self._before: dict[int, object] = {}

    def requested(self) -> bool:
        """Whether any process has been told to stop. All of them ask together."""
        agreed = any_process(self._told)
        if agreed:  # never set back: a signal may have come meanwhile
            self._told = True
        return agreed

    def check(self) -> None:
        """Raises `Stopped` if a stop was requested. All processes call it together."""
        if self.requested():
            raise Stopped

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._request) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _request(self, number: int, frame: object) -> None:
        del frame
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            os.write(2, b"\nstopping at the end of this step; Ctrl-C again stops at once\n")  # print may be under way
        self._told = True
