"""The memory of decoded visuals: a file that changed is another visual."""

import os

from videoauto_jax.data.cache import visual_key


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
