"""Reading annotation files: JSON lists, JSON lines, and directories of either."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videoauto_jax.errors import DataError

SUFFIXES = (".json", ".jsonl")

_BEYOND = (ValueError, RecursionError)  # sound JSON that Python does not take: thousands of digits or of brackets


def read_records(path: str | Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Every record of an annotation file, or of every file of a directory in the order of their names.

    A file is a JSON list of objects or one JSON object per line; its content decides, not its name.

    Yields:
        (where, key, group, record): the place for messages, the number (counted from 1; `stem/number` in a directory),
        the stem of the file, the object.

    Raises:
        DataError: a missing file, a file of a directory that is not an annotation, broken JSON, a record that is not
            an object.
    """
    root = Path(path)
    for file in _files(root):
        prefix = f"{file.stem}/" if root.is_dir() else ""
        for number, (where, record) in enumerate(_objects(file), start=1):
            if not isinstance(record, dict):
                raise DataError("a record must be a JSON object", where=where)
            yield where, f"{prefix}{number}", file.stem, record


def _files(root: Path) -> list[Path]:
    if not root.exists():
        raise DataError("annotations not found", where=root, fix="Check anno_path in the recipe.")
    if not root.is_dir():
        return [root]
    files = sorted(file for file in root.iterdir() if not file.name.startswith("."))
    for file in files:
        if file.suffix not in SUFFIXES or file.is_dir():
            fix = "Move it elsewhere; a directory of annotations holds .json and .jsonl files only."
            raise DataError("not an annotation file", where=file, fix=fix)
    if not files:
        raise DataError("a directory without annotation files", where=root, fix="Check anno_path in the recipe.")
    return files


def _objects(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"annotations cannot be read: {error}", where=file) from None
    if text.lstrip().startswith("["):
        return _items(file, text)
    return _lines(file, text)


def _items(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error.msg}", where=f"{file}:{error.lineno}:{error.colno}") from None
    except _BEYOND as error:
        raise DataError(f"JSON that cannot be read: {error}", where=file) from None
    for number, record in enumerate(records, start=1):
        yield f"{file}, record {number}", record


def _lines(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{file}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            fix = "Each line must be one JSON object, or the whole file one JSON list."
            raise DataError(f"broken JSON: {error.msg}", where=f"{file}:{number}:{error.colno}", fix=fix) from None
        except _BEYOND as error:
            raise DataError(f"JSON that cannot be read: {error}", where=f"{file}:{number}") from None
