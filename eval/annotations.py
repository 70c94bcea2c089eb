"""The annotations of a published data set in a local folder: parquet, JSON lists or JSON lines, as downloaded."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from videoauto_jax.data.records import read_records
from videoauto_jax.errors import DataError
from videoauto_jax.eval.benchmarks.base import TASK, Benchmark

SUFFIXES = (".parquet", ".json", ".jsonl")
_SPLITS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
    ("full",),
    ("mini",),
)
"""What files call a split: its own name, then the others by which Hugging Face's loader knows it."""

HUB = "hub"
"""In place of a folder: fetch the annotations from the Hugging Face hub."""


def read_rows(benchmark: Benchmark, place: str | Path, tasks: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The rows of a benchmark, sub-task after sub-task, each with its key and, under `TASK`, its sub-task.

    Args:
        place: folder or file of the annotations, or `HUB`.
        tasks: the sub-tasks wanted, in order.

    Raises:
        DataError: no such folder, no table for a sub-task in it, missing columns, a broken file.
    """
    root = _fetch(benchmark) if str(place) == HUB else Path(place)
    if not root.exists():
        raise DataError(f"the folder of {benchmark.title} does not exist", where=root, fix=_download(benchmark, root))
    for task, files in find_tables(benchmark, root, tasks).items():
        number = 0
        for file in files:
            for row in _rows(file):
                number += 1
                _check_columns(benchmark, row, file)
                yield f"{task}/{number}" if task else str(number), row | ({TASK: task} if task else {})


def find_tables(benchmark: Benchmark, root: Path, tasks: Sequence[str]) -> dict[str, list[Path]]:
    """The files of every sub-task's split: those below its folder or of its name, of these those that name the split.

    Raises:
        DataError: there is none, or one file for several sub-tasks; tells what was expected and what was found.
    """
    if root.is_file():
        if len(tasks) > 1:
            fix = f"Name a folder with a table for each, or one of them: benchmarks.{benchmark.name}.tasks=[{tasks[0]}]"
            raise DataError(f"{benchmark.title}: one file cannot hold {len(tasks)} sub-tasks", where=root, fix=fix)
        return {task: [root] for task in tasks}
    tables = sorted(_tables(root))
    return {task: _of_task(benchmark, root, task, tables) for task in tasks}


def _tables(root: Path) -> Iterator[Path]:
    """All visible tables; the folder, which holds thousands of videos too, is walked once."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if name.endswith(SUFFIXES) and not name.startswith("."))


def _of_task(benchmark: Benchmark, root: Path, task: str, tables: Sequence[Path]) -> list[Path]:
    mine = [path for path in tables if not task or _names(path, root, task)]
    found = _of_split(mine, root, benchmark.split)
    parquet = [path for path in found if path.suffix == ".parquet"]
    if found:
        return parquet or found
    wanted = "/".join(filter(None, (task, f"{benchmark.split}*.parquet")))
    seen = ", ".join(str(path.relative_to(root)) for path in tables[:6]) or "no parquet or JSON file"
    raise DataError(
        f"{benchmark.title}: expected {wanted} (or .json, .jsonl), found {seen}",
        where=root,
        fix=_download(benchmark, root),
    )


def _of_split(tables: Sequence[Path], root: Path, split: str) -> list[Path]:
    """The tables that name the split; else the only one there is, if it names no other."""
    words = next((words for words in _SPLITS if split in words), (split,))
    for word in words:
        if found := [path for path in tables if _names(path, root, word)]:
            return found
    one = len({path.parent for path in tables}) == 1 and _one_table(tables)
    others = [word for known in _SPLITS for word in known]
    return list(tables) if one and not any(_names(tables[0], root, word) for word in others) else []


def _names(path: Path, root: Path, word: str) -> bool:
    """Whether a folder on the way is called so, or the file's name begins with it or has it as a part."""
    word, relative = word.casefold(), path.relative_to(root)
    stem = relative.stem.casefold()
    folders = {part.casefold() for part in relative.parts[:-1]}
    return word in folders or stem == word or bool(re.search(rf"(^|[-_.]){re.escape(word)}([-_.]|$)", stem))


def _one_table(paths: Sequence[Path]) -> bool:
    """One file, or the shards of one."""
    return len({re.sub(r"-\d+-of-\d+$", "", path.stem) for path in paths}) == 1


def _rows(file: Path) -> Iterator[dict]:
    if file.suffix != ".parquet":
        yield from (record for *_, record in read_records(file))
        return
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(256):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise DataError(f"not a readable parquet file: {what}", where=file, fix="Download it again") from error


def _check_columns(benchmark: Benchmark, row: dict, file: Path) -> None:
    missing = [column for column in benchmark.columns if column not in row]
    if missing:
        fix = f"It has {', '.join(row)}; the published schema is that of {benchmark.repo}"
        raise DataError(f"{benchmark.title}: columns missing: {', '.join(missing)}", where=file, fix=fix)


def _download(benchmark: Benchmark, root: Path) -> str:
    revision = f" --revision {benchmark.revision}" if benchmark.revision else ""
    command = f"hf download {benchmark.repo} --repo-type dataset{revision} --local-dir {root}"
    return f"{command}, then unpack its videos there"


def _fetch(benchmark: Benchmark) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = snapshot_download(
            benchmark.repo, repo_type="dataset", revision=benchmark.revision, allow_patterns=patterns
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        what = f"the hub does not give {benchmark.repo}: {type(error).__name__}"
        fix = f"Download it elsewhere and name its folder: benchmarks.{benchmark.name}.annotations=FOLDER"
        raise DataError(what, fix=fix) from error
    return Path(folder)
