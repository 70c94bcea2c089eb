"""A small memory of decoded visuals: many questions about one video, and a group's many branches, decode it once."""

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path

from videoauto_jax.data.visuals import Visual


def visual_key(item: Mapping) -> Hashable | None:
    """What makes two visuals equal: every field, and the state of the file; None for those given in memory."""
    if not all(isinstance(value, str | int | float | bool | Path | None) for value in item.values()):
        return None
    stamps = []
    for value in item.values():
        path = str(value).removeprefix("file://") if isinstance(value, str | Path) else ""
        if path and len(path) < 4096 and os.path.exists(path):
            status = os.stat(path)
            stamps.append((status.st_mtime_ns, status.st_size))
    return (*sorted((key, str(value)) for key, value in item.items()), *stamps)


class VisualCache:
    """The visuals used last, up to a number of bytes. Safe among threads; travels to another process empty."""

    def __init__(self, nbytes: int):
        self._limit, self._held = nbytes, 0
        self._visuals: OrderedDict[Hashable, Visual] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable | None) -> Visual | None:
        with self._lock:
            if key in self._visuals:
                self._visuals.move_to_end(key)
            return self._visuals.get(key)

    def put(self, key: Hashable | None, visual: Visual) -> None:
        if key is None or visual.nbytes > self._limit:
            return
        with self._lock:
            if key in self._visuals:
                return
            self._visuals[key] = visual
            self._held += visual.nbytes
            while self._held > self._limit:
                self._held -= self._visuals.popitem(last=False)[1].nbytes

    def __reduce__(self):
        return VisualCache, (self._limit,)
