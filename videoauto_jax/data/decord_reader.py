"""Reading frames with decord, for those who need its very frames.

decord returns wrong frames without a word where an edit list hides some, has no AV1, and can spin for ever on damaged
files (dmlc/decord issues 269, 363, 373). So it runs in a process of its own under a watchdog, with one thread (VP9
fails with more), and only on files in which it counts as many frames as the packets tell.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from videoauto_jax.data.video import VideoReader
from videoauto_jax.errors import MediaError

TIMEOUT_S = 120.0
"""Seconds that decord may take to open a file, or to read a few frames of it."""
_AT_ONCE = 8
_FIX = "Read this file with video_reader=pyav"


class DecordReader:
    """An open video; the same interface as `video.VideoReader`, whose facts about the file it takes.

    Args:
        source: a path or the bytes of a file.
        threads: of the pass over the packets; decord itself takes one.

    Raises:
        MediaError: as `VideoReader`, or decord cannot open the file, counts other frames, or does not answer in time.
    """

    def __init__(self, source: str | Path | bytes, threads: int = 1):
        self._where = str(source)[:200] if isinstance(source, str | Path) else "video bytes"
        with VideoReader(source, threads) as exact:
            self.info = exact.info
        self._source = str(source).removeprefix("file://") if isinstance(source, str | Path) else source

    def __enter__(self) -> "DecordReader":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(
        self, indices: Sequence[int], transform: Callable[[ndarray], ndarray] | None = None
    ) -> list[UInt8[ndarray, "H W 3"]]:
        """RGB frames by index, each through `transform`."""
        found: list[ndarray] = []
        with _WORKER.lock:
            count = self._ask("open", self._source)
            if count != self.info.frames:
                raise MediaError(f"decord counts {count} frames of {self.info.frames}", where=self._where, fix=_FIX)
            for start in range(0, len(indices), _AT_ONCE):
                frames = self._ask("read", list(indices[start : start + _AT_ONCE]))
                found += [frame if transform is None else transform(frame) for frame in frames]
        return found

    def _ask(self, kind: str, value: object) -> object:
        answer = _WORKER.ask(kind, value)
        if answer is None:
            raise MediaError(f"decord did not answer in {TIMEOUT_S:g} s", where=self._where, fix=_FIX)
        if isinstance(answer, str):
            raise MediaError(f"decord: {answer}", where=self._where, fix=_FIX)
        return answer


class _Worker:
    """The process behind all readers of this one; started when first asked, and again after it had to be killed."""

    def __init__(self):
        self.lock = threading.Lock()
        self._process = self._connection = self._owner = None

    def ask(self, kind: str, value: object) -> object:
        """The answer, text if decord failed, None if the process hung or died and was put away."""
        if self._owner != os.getpid():  # a forked process must not share its parent's connection
            self._start()
        try:
            self._connection.send((kind, value))
            if self._connection.poll(TIMEOUT_S):
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        self.stop()
        return None

    def stop(self) -> None:
        """Kills the process."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            self._connection.close()
        self._owner = None

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "videoauto_jax.data.decord_worker", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._owner = os.getpid()


_WORKER = _Worker()
atexit.register(_WORKER.stop)
