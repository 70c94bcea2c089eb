"""Files are whole or absent, logs survive a crash, and nothing of the user's is overwritten unasked."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.errors import DataError, UsageError
from videoauto_jax.files import append_jsonl, new_folder, read_jsonl, write_atomic, write_json


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("content", ["é\nb", b"\x00\xff"])
def test_write_atomic_makes_folders_and_replaces(tmp_path, content):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "old")
    path.chmod(0o640)
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["b.txt"] and path.stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    write_atomic(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("videoauto_jax.files.os.fsync", full)
    with pytest.raises(OSError):
        write_atomic(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["b.txt"]


def test_json_is_strict_and_knows_our_values(tmp_path):
    @dataclasses.dataclass
    class Point:
        x: float
        at: Path

    value = {
        "n": np.float32(0.5),
        "a": np.arange(3),
        "p": Point(float("nan"), Path("x")),
        1: (True, None, float("inf")),
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"n": 0.5, "a": [0, 1, 2], "p": {"x": None, "at": "x"}, "1": [True, None, None]}
    assert text.endswith("}\n") and "NaN" not in text


def test_json_lines_survive_a_crash_at_any_byte(tmp_path):
    records = [{"step": n, "text": "é" * n} for n in range(3)]
    path = tmp_path / "logs" / "a.jsonl"
    for record in records:
        append_jsonl(path, record)
    whole = path.read_bytes()
    assert read_jsonl(path) == records
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        before = read_jsonl(path)
        assert before == records[: len(before)] and len(before) >= whole[:size].count(b"\n")
        append_jsonl(path, {"again": size})
        assert read_jsonl(path) == [*before, {"again": size}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n{"a": 2}\n')
    with pytest.raises(DataError, match=r"not JSON.*a\.jsonl:3"):
        read_jsonl(path)
    with pytest.raises(DataError, match="no such file"):
        read_jsonl(tmp_path / "b.jsonl")


def test_an_output_folder_is_not_overwritten_unasked(tmp_path):
    folder = tmp_path / "runs" / "one"
    assert new_folder(folder) == folder and new_folder(str(folder)).is_dir()
    (folder / "old").mkdir()
    (folder / "old" / "x").touch()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"not empty .*one\).*--force"):
        new_folder(folder)
    assert names(folder) == ["link", "old"]
    new_folder(folder, force=True)
    assert names(folder) == [] and names(tmp_path) == ["runs"]


def test_force_spares_what_is_plainly_not_an_output_folder(tmp_path, monkeypatch):
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "repository", tmp_path, Path("."), tmp_path.parent):
        with pytest.raises(UsageError, match="--force will not empty"):
            new_folder(path, force=True)
    with pytest.raises(UsageError, match="is a file"):
        new_folder(tmp_path / "file", force=True)


def test_half_a_surrogate_pair_is_kept(tmp_path):
    """JSON may hold one, a user's answers for instance; UTF-8 may not."""
    record = {"answer": json.loads('"\\ud83d!"')}
    append_jsonl(tmp_path / "records.jsonl", record)
    write_json(tmp_path / "value.json", record)
    assert read_jsonl(tmp_path / "records.jsonl") == [record] == [json.loads((tmp_path / "value.json").read_text())]
