"""Which samples a run trains on, and which it leaves out before it draws the first one."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.datasets.registry import media_exist
from videoauto_jax.data.manifest import read_manifest, sample_key
from videoauto_jax.data.processor import Processor
from videoauto_jax.data.skips import LeftOut, left_out_earlier

if TYPE_CHECKING:
    from videoauto_jax.data.recipe import DataConfig

log = logging.getLogger(__name__)
SHOWN = 5
"""Samples that a warning names."""


def usable_samples(
    data: "DataConfig", processor: Processor, decided: str | Path | None = None
) -> tuple[list[Sample], list[LeftOut]]:
    """A recipe's samples without those that are known to be of no use: no media, damaged, a prompt too long.

    What cannot be known beforehand stays: the stream skips what it cannot encode.

    Args:
        data: the recipe's; its manifest says what is damaged or too long.
        processor: makes the prompts.
        decided: `skipped.jsonl` of a run that is taken up: it leaves out what it left out when it began, however media
            and manifest have changed since, and so its order stays the same.

    Returns:
        The samples, and what was left out, with the reason; warnings name the first of them.
    """
    samples = data.samples(keep_missing=True)
    earlier = None if decided is None else left_out_earlier(decided)
    if earlier is not None:
        if earlier:
            log.warning("%d samples stay left out, as when this run began: see %s", len(earlier), decided)
        return without(samples, earlier), earlier
    left_out = list(_useless(samples, data, processor))
    warn_about(left_out)
    return without(samples, left_out), left_out


def without(samples: Sequence[Sample], left_out: Sequence[LeftOut]) -> list[Sample]:
    """The samples that are not left out."""
    out = {one.id for one in left_out}
    return [sample for sample in samples if sample.id not in out]


def _useless(samples: Sequence[Sample], data: "DataConfig", processor: Processor) -> Iterator[LeftOut]:
    known = read_manifest(data.manifest) if data.manifest else {}
    bound = data.max_prompt_tokens or float("inf")
    for sample, there in zip(samples, media_exist(samples)):
        entry = known.get(sample_key(sample, processor)) if known else None
        if not there:
            reason = "its media do not exist"
        elif entry and entry.reason:
            reason = entry.reason
        elif entry and entry.tokens > bound:
            reason = f"its prompt has {entry.tokens} tokens, max_prompt_tokens is {bound}"
        else:
            continue
        yield LeftOut(sample.id, sample.media, reason)


def warn_about(left_out: Sequence[LeftOut]) -> None:
    """One warning per data set."""
    by_set: dict[str, list[LeftOut]] = {}
    for one in left_out:
        by_set.setdefault(one.id.split("/")[0], []).append(one)
    for name, found in by_set.items():
        shown = "; ".join(f"{one.id} ({one.media or 'text'}: {one.reason})" for one in found[:SHOWN])
        more = "; …" if len(found) > SHOWN else ""
        log.warning("%s: %d samples left out, all named in skipped.jsonl: %s%s", name, len(found), shown, more)
