"""The memory of decoded visuals: what is kept, loaded once, and that a file that changed is another visual."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from videoauto_jax.data.cache import VisualCache, visual_key
from videoauto_jax.errors import MediaError


def test_a_changed_file_is_another_visual(tmp_path):
    path = tmp_path / "a.png"
    for source in (path, str(path), f"file://{path}"):
        path.write_bytes(b"one")
        before = visual_key({"image": source})
        assert visual_key({"image": source}) == before
        path.write_bytes(b"another")
        os.utime(path, ns=(1, 1))
        assert visual_key({"image": source}) != before


def test_visuals_in_memory_have_no_key():
    assert visual_key({"image": b"..."}) is None


class Sized:
    """A visual of so many bytes."""

    def __init__(self, nbytes):
        self.nbytes = nbytes


def test_what_several_threads_ask_for_at_once_is_loaded_once():
    cache, begun, go_on, loads = VisualCache(10), threading.Event(), threading.Event(), []

    def load():
        loads.append(1)
        begun.set()
        assert go_on.wait(10)
        return Sized(5)

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(cache.get, "a", load)
        assert begun.wait(10)
        others = [threads.submit(cache.get, "a", load) for _ in range(3)]
        go_on.set()
        assert all(other.result(10) is first.result(10) for other in others)
    assert cache.get("a", load) is first.result() and loads == [1]


def test_a_visual_that_cannot_be_loaded_is_tried_again():
    cache, visual = VisualCache(10), Sized(5)

    def fail():
        raise MediaError("cannot decode")

    with pytest.raises(MediaError):
        cache.get("a", fail)
    assert cache.get("a", lambda: visual) is visual


def test_the_last_visual_stays_whatever_its_size():
    cache, large = VisualCache(10), Sized(100)
    kept = lambda key: cache.get(key, lambda: None) is not None  # noqa: E731
    cache.get("small", lambda: Sized(6))
    cache.get("large", lambda: large)
    assert cache.get("large", lambda: Sized(1)) is large and not kept("small")
    cache.get("b", lambda: Sized(6))
    cache.get("c", lambda: Sized(4))
    assert kept("b") and kept("c") and not kept("large")
    nothing = VisualCache(0)
    nothing.get("a", lambda: large)
    assert nothing.get("a", lambda: None) is None
