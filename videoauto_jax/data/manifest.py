"""What an audit of the data found: one line per sample, which training reads to leave samples out by name.

A line belongs to a sample as it was: its chat with its budgets, and the processor's way with it. After a change of
either the line is not read any more, and the next audit writes a new one.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.processor import Processor
from videoauto_jax.files import append_jsonl, read_jsonl


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
