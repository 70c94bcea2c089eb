"""SIGTERM, which schedulers send before they take a machine away, as a polite request to stop."""

import signal
import threading


class Stopped(Exception):
    """Raised at a safe point after a stop was requested: nothing has been changed since the unit of work began."""


class StopRequest:
    """Whether the process has been told to stop, while the context is open.

    Outside the main thread, where no handler can be set, nothing ever stops.
    """

    def __init__(self):
        self.requested = False
        self._before = None

    def check(self) -> None:
        """Raises `Stopped` if a stop was requested."""
        if self.requested:
            raise Stopped

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _request(self, number: int, frame: object) -> None:
        del number, frame
        self.requested = True
