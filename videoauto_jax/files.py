"""Files that are whole or absent: atomic writes, JSON, JSON lines that survive a crash, and output folders."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path

from videoauto_jax.errors import DataError, UsageError


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes a file under a temporary name beside `path`, then renames it: readers see the old file or the new one.

    Missing parent folders are made. An existing file keeps its permissions.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is intact and no temporary is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _encoded(content) if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: object) -> None:
    """Writes indented JSON atomically. NumPy values, paths, dataclasses are converted; NaN and infinity become null."""
    write_atomic(path, json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def append_jsonl(path: str | Path, record: Mapping) -> None:
    """Appends one record as one line. What a crash left of an earlier record is removed first.

    Raises:
        OSError: the line could not be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_plain(record), ensure_ascii=False) + "\n"
    with path.open("a+b") as file:
        _mend_last_line(file)
        file.write(_encoded(line))


def read_jsonl(path: str | Path) -> list[dict]:
    """Reads the records of a JSON-lines file. A half-written last line (no newline, not JSON) is left out.

    Raises:
        DataError: the file is missing, or a line before the last is not JSON; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("there is no such file", where=path, fix="Check the path")
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            fix = "Every line has to be one JSON object; mend or remove this one"
            raise DataError(f"this line is not JSON: {error}", where=f"{path}:{number}", fix=fix) from error
    return records


def new_folder(path: str | Path, force: bool = False, inputs: Sequence[str | Path] = ()) -> Path:
    """Makes an empty output folder and returns it. `force` empties a folder that has something in it.

    Args:
        inputs: what the output is made from.

    Raises:
        UsageError: the folder is not empty and `force` is False; `path` is a file; or `force` would empty a folder
            that is plainly not an output folder (a repository, a home, one that holds the working directory, an input).
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError("the output folder is a file", where=path, fix="Name another folder")
    if path.is_dir() and any(path.iterdir()):
        if not force:
            fix = "Name another folder, or add --force to empty this one first"
            raise UsageError("the output folder is not empty", where=path, fix=fix)
        _empty(path, inputs)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def whole_folder(path: str | Path, force: bool, inputs: Sequence[str | Path] = ()) -> Iterator[Path]:
    """A new output folder that is empty again if the block fails: the same command can then be run once more.

    Raises:
        UsageError: as `new_folder`.
    """
    folder = new_folder(path, force, inputs)
    try:
        yield folder
    except BaseException:
        _empty(folder)
        raise


def claim_folder(
    path: str | Path,
    recipe: str,
    *,
    holds: str,
    fix: str,
    force: bool,
    name: str = "config.yaml",
    inputs: Sequence[str | Path] = (),
) -> Path:
    """Makes a folder the output of a recipe, or finds that it is, and returns it.

    Args:
        recipe: the recipe's text, written to `name` before anything else.
        holds, fix: what the folder then holds and what to do, where its recipe is another one.
        force: begin anew in a folder of this or another recipe.
        inputs: folders that the recipe reads.

    Raises:
        UsageError: the folder holds another recipe's output, or whatever `new_folder` refuses.
    """
    folder = Path(path)
    written = folder / name
    if written.exists() and not force:
        if written.read_text() == recipe:
            return folder
        raise UsageError(f"the output folder holds {holds}", where=folder, fix=fix)
    new_folder(folder, force, inputs)
    write_atomic(written, recipe)
    return folder


def _empty(folder: Path, inputs: Sequence[str | Path] = ()) -> None:
    whole = folder.resolve()
    precious = Path.cwd().is_relative_to(whole) or whole == Path.home().resolve() or (whole / ".git").exists()
    if precious:
        raise UsageError("--force will not empty this folder", where=folder, fix="Name a folder inside it")
    for source in (Path(source).resolve() for source in inputs):
        if source.is_relative_to(whole) or (source.exists() and whole.is_relative_to(source)):
            what = f"--force would delete what the output is made from, {source}"
            raise UsageError(what, where=folder, fix="Name another folder")
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _mend_last_line(file) -> None:
    """Leaves the file at its end, after a newline: completes a whole last record, cuts half a one."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    start = file.read().rfind(b"\n") + 1
    file.seek(start)
    try:
        json.loads(file.read())
        file.write(b"\n")
    except ValueError:
        file.truncate(start)


def _encoded(text: str) -> bytes:
    """UTF-8. Half of a surrogate pair, which has no UTF-8, becomes what JSON writes for it."""
    return text.encode(errors="backslashreplace")


def _plain(value: object) -> object:
    """The JSON form of a value: finite floats, plain containers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and jax arrays and scalars
        return _plain(value.tolist())
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
