"""A small memory of decoded visuals: many questions about one video, and a group's many branches, decode it once."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
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
    """The visuals used last, up to a number of bytes, and the last one whatever its size.

    Safe among threads: what several ask for at once is loaded once. Travels to another process empty.
    """

    def __init__(self, nbytes: int):
        """
        Args:
            nbytes: 0 keeps nothing.
        """
        self._limit, self._held = nbytes, 0
        self._visuals: OrderedDict[Hashable, Visual] = OrderedDict()
        self._loading: dict[Hashable, Future] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable | None, load: Callable[[], Visual]) -> Visual:
        """The visual of a key, from `load` if it is not there; what that raises reaches all who wait for it.

        Args:
            key: None for a visual that is not kept.
        """
        if key is None:
            return load()
        with self._lock:
            if key in self._visuals:
                self._visuals.move_to_end(key)
                return self._visuals[key]
            others = self._loading.get(key)
            if others is None:
                mine = self._loading[key] = Future()
        return others.result() if others is not None else self._load(key, load, mine)

    def _load(self, key: Hashable, load: Callable[[], Visual], told: Future) -> Visual:
        visual = None
        try:
            visual = load()
            told.set_result(visual)
            return visual
        except BaseException as error:
            told.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._loading[key]
                if visual is not None:
                    self._keep(key, visual)

    def _keep(self, key: Hashable, visual: Visual) -> None:
        if not self._limit:
            return
        self._visuals[key] = visual
        self._held += visual.nbytes
        while self._held > self._limit and len(self._visuals) > 1:
            self._held -= self._visuals.popitem(last=False)[1].nbytes

    def __reduce__(self):
        return VisualCache, (self._limit,)
