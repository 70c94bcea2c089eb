"""What an audit of the data found: one line per sample, which training reads to leave samples out by name.

A line belongs to a sample as it was: its chat with its budgets, and the processor's way with it. After a change of
either the line is not read any more, and the next audit writes a new one.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.processor import Processor
from videoauto_jax.files import append_jsonl, read_jsonl

if TYPE_CHECKING:
    from videoauto_jax.data.recipe import DataConfig

log = logging.getLogger(__name__)
SHOWN = 5
"""Samples that a warning names."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One audited sample.

    Attributes:
        id: the sample's.
        key: `sample_key` of it.
        media: path of its visual.
        reason: why it cannot be used, None if it can.
        tokens: of its prompt.
        patches: of its visual.
        frames: sampled from its video.
        duration: of its video, in seconds.
    """

    id: str
    key: str
    media: str | None
    reason: str | None = None
    tokens: int = 0
    patches: int = 0
    frames: int = 0
    duration: float = 0.0


def sample_key(sample: Sample, processor: Processor) -> str:
    """Identity of what an audit of this sample depends on, apart from the content of its media file."""
    names = ("video_prompt", "position_convention", "resize", "video_reader")
    options = [processor.settings.family, processor.settings.patch_size, *(getattr(processor, name) for name in names)]
    text = json.dumps([sample.messages, options], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_manifest(path: str | Path) -> dict[str, Entry]:
    """The entries of a manifest by key, the later of two; empty if there is no such file."""
    if not Path(path).is_file():
        return {}
    fields = {field.name for field in dataclasses.fields(Entry)}
    entries = [Entry(**{name: record[name] for name in fields & record.keys()}) for record in read_jsonl(path)]
    return {entry.key: entry for entry in entries}


def write_entry(path: str | Path, entry: Entry) -> None:
    """Appends an entry."""
    append_jsonl(path, dataclasses.asdict(entry))


def usable_samples(data: "DataConfig", processor: Processor) -> list[Sample]:
    """A recipe's samples without those that its manifest knows to be damaged or too long; a warning names them.

    What the manifest does not know stays: the stream still skips what it cannot encode.
    """
    samples, manifest = data.samples(), data.manifest
    known = read_manifest(manifest) if manifest else {}
    if not known:
        return samples
    bound = data.max_prompt_tokens or float("inf")
    entries = [known.get(sample_key(sample, processor)) for sample in samples]
    damaged = [entry for entry in entries if entry and entry.reason]
    long = [entry for entry in entries if entry and not entry.reason and entry.tokens > bound]
    _warn("damaged", [f"{entry.id} ({entry.reason})" for entry in damaged], manifest)
    _warn(f"longer than max_prompt_tokens={bound}", [f"{entry.id} ({entry.tokens} tokens)" for entry in long], manifest)
    out = {entry.key for entry in [*damaged, *long]}
    return [sample for sample, entry in zip(samples, entries) if not (entry and entry.key in out)]


def _warn(what: str, names: Iterable[str], manifest: str | Path) -> None:
    names = list(names)
    if names:
        more = f" and {len(names) - SHOWN} more, see {manifest}" if len(names) > SHOWN else ""
        log.warning("%d samples left out, %s: %s%s", len(names), what, "; ".join(names[:SHOWN]), more)
