"""SIGTERM, which schedulers send before they take a machine away, as a polite request to stop."""

import signal
import threading

import jax

from videoauto_jax.distributed import any_process


class Stopped(Exception):
    """Raised at a safe point after a stop was requested: nothing has been changed since the unit of work began."""


class StopRequest:
    """Whether a process of the job has been told to stop, while the context is open.

    In a job of several processes Ctrl-C is such a request too, since none of them can save alone; a second one ends the
    job at once. Outside the main thread, where no handler can be set, nothing ever stops.
    """

    def __init__(self):
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
            numbers = [signal.SIGTERM] if jax.process_count() == 1 else [signal.SIGTERM, signal.SIGINT]
            self._before = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _request(self, number: int, frame: object) -> None:
        del frame
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = True
