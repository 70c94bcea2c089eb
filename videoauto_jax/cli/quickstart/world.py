"""The video world of the quickstart: media and annotations, in the shapes of the published training sets.

    videos/, images/               media of all splits
    train/, heldout/               annotations, a file per source (`SOURCES`)
    study/, warmup/                the same of `train`, each record with a demonstration in the field `response`
    lamp/, look/                   lessons.json: what every train video shows, the lamp alone and everything
    world.json                     what the folder was made from

Train and held-out media never share a scene seed, nor do their text items share a sum.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videoauto_jax.cli.quickstart.asking import RANGES, Asked, questions, taught
from videoauto_jax.cli.quickstart.demonstrations import demonstration
from videoauto_jax.cli.quickstart.questions import Item
from videoauto_jax.cli.quickstart.spec import STANDARD, WorldSpec, check
from videoauto_jax.cli.quickstart.video_file import MediaFile, make_files
from videoauto_jax.data.annotations import Record, Sample
from videoauto_jax.data.datasets import DatasetConfig
from videoauto_jax.errors import UsageError
from videoauto_jax.files import write_atomic, write_json

SPLITS = ("train", "heldout", "lamp", "look", "study", "warmup")
# Annotation file -> loader of its shape, folder of its media.
SOURCES = {
    "videor1": ("VideoR1", "videos"),
    "videor1_images": ("VideoR1", "images"),
    "longvideoreason": ("LongVideoReason", "videos"),
    "charades": ("Charades-STA", "videos"),
    "nextgqa": ("NeXT-GQA", "videos"),
    "virl": ("VIRL", "images"),
    "dapo": ("DAPO-Math", ""),
    "lessons": ("videoauto_jax.cli.quickstart.world:lesson", "videos"),
}
_MEDIA_FIELD = {"videor1": "path", "videor1_images": "path", "longvideoreason": "videos"}  # "video" elsewhere
_CODE = ("scene.py", "questions.py", "demonstrations.py", "video_file.py", "spec.py", "asking.py", "world.py")


def make_world(
    folder: str | Path,
    seed: int,
    spec: WorldSpec = STANDARD,
    *,
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Makes the world of a seed in a folder, or finishes the one begun there; a complete one is left as it is.

    Args:
        workers: processes that make media; by default one per core.
        report: told how many media files are there, of how many.

    Raises:
        ConfigError: impossible sizes or an unknown skill.
        UsageError: the folder holds something else.
        OSError: the disk is full; run again to go on.
    """
    check(seed, spec)
    folder = Path(folder)
    _claim(folder, seed, spec)
    media: list[MediaFile] = []
    for split in ("train", "heldout"):
        asked = list(questions(folder, split, seed, spec))
        media += {file.path: file for _, _, file in asked if file}.values()
        _write_annotations(folder / split, asked)
        if split == "train":
            told = list(taught(media))
            _write_annotations(folder / "lamp", [t for t in told if t[1].skill == "lamp"], lambda item: item.answer)
            _write_annotations(folder / "look", told, lambda item: item.answer)
            for number, stage in enumerate(("study", "warmup")):
                rng = np.random.default_rng([seed, len(RANGES) + number])
                _write_annotations(folder / stage, asked, partial(demonstration, rng=rng, mix=getattr(spec, stage)))
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    make_files(media, size=spec.size, workers=workers, report=report)


def version() -> str:
    """Changes with the code that makes worlds."""
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE)
    return hashlib.sha256(sources).hexdigest()


def data_sets(folder: str | Path, split: str) -> dict[str, DatasetConfig]:
    """The data sets of a split as a recipe names them: `load_datasets(list(sets), sets, system_prompt)`."""
    folder = Path(folder).absolute()
    return {
        source: DatasetConfig(loader, str(folder / split / f"{source}.json"), str(folder / media))
        for source, (loader, media) in SOURCES.items()
        if (folder / split / f"{source}.json").exists()
    }


def lesson(record: Record) -> Sample:
    """The loader of `lessons.json`: a question without a system prompt, so that nothing stands beside the video."""
    visual = record.video(record.text("video"))
    sample = record.sample(record.text("question"), record["answer"], "exact_match", visual, grounding=True)
    return dataclasses.replace(sample, messages=sample.messages[-1:])


def _claim(folder: Path, seed: int, spec: WorldSpec) -> None:
    """Marks the folder as this world's, or finds that it is."""
    identity = {"seed": seed, "spec": dataclasses.asdict(spec), "code": version()}
    text = json.dumps(identity, indent=2) + "\n"
    marker = folder / "world.json"
    if not marker.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError("the world's folder holds something else", where=folder, fix="Name another folder")
        write_atomic(marker, text)
    elif marker.read_text() != text:
        fix = "Remove it, or name another folder"
        raise UsageError("the folder holds a world of other settings or of another version", where=folder, fix=fix)


def _write_annotations(folder: Path, asked: Iterable[Asked], demonstrate: Callable[[Item], str] | None = None) -> None:
    """One file per source; with a demonstration in every record where they are made."""
    records: dict[str, list[dict[str, Any]]] = {}
    for identifier, item, file in asked:
        record = {"id": identifier, "tags": [item.kind, item.skill], **item.fields, **_medium(item.source, file)}
        if demonstrate:
            record["response"] = demonstrate(item)
        records.setdefault(item.source, []).append(record)
    for source, of_source in records.items():
        if not (folder / f"{source}.json").exists():
            write_json(folder / f"{source}.json", of_source)


def _medium(source: str, file: MediaFile | None) -> dict[str, Any]:
    if file is None:
        return {}
    shown = {"scene": file.seed} | ({} if file.second is None else {"second": file.second})
    if source == "virl":
        return {"image": [file.path.name], **shown}
    return {_MEDIA_FIELD.get(source, "video"): file.path.name, **shown}
