"""What a GRPO run leaves for people to read: sample rollouts, a batch that broke the run, warnings."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.collate import bucket
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.distributed import is_main, on_main
from videoauto_jax.errors import TrainingError
from videoauto_jax.files import append_jsonl, read_jsonl, write_atomic, write_json
from videoauto_jax.models.placing import fetch
from videoauto_jax.train.rollout import Graded
from videoauto_jax.train.step import NONFINITE_STREAK, Pairs

log = logging.getLogger(__name__)

BENCHMARK = "benchmark"
"""Tag of data sets that were published as benchmarks."""

SAMPLES = "samples.jsonl"


def write_sample(folder: Path, index: int, group: Graded) -> None:
    """Appends the branches of one prompt to `samples.jsonl`. A full disk is reported and ends nothing."""
    if not is_main():
        return
    _, sample, _ = group.item
    record = {
        "round": index + 1,
        "id": sample.id,
        "question": sample.messages[-1]["content"],
        "truth": sample.answer,
    }
    written = [
        {"text": answer.text, "confidence": answer.confidence, "reward": float(reward)}
        for answer, reward in zip(group.answers, group.totals)
    ]
    try:
        append_jsonl(folder / SAMPLES, record | {"branches": written})
    except OSError as error:
        log.warning("the sample rollout of round %d was not written: %s", index + 1, error)


def rewind_samples(folder: Path, done: int) -> None:
    """Drops the sample rollouts of rounds after `done`, which will be written again."""
    path = folder / SAMPLES
    if not path.exists():
        return
    records = read_jsonl(path)
    kept = [record for record in records if record.get("round", 0) <= done]
    if len(kept) < len(records):
        write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def warn_about_equal_rewards(groups: Sequence[Graded], index: int) -> None:
    """Says so if a whole round holds no group to learn from."""
    if not any(group.teaches for group in groups):
        totals = sorted({float(group.totals[0]) for group in groups})
        log.warning(
            "round %d: all branches of each of the %d groups have the same reward (%s): nothing to learn but the KL "
            "term. Raise rollout.temperature or rollout.branches, or check the answers in samples.jsonl",
            *(index + 1, len(groups), ", ".join(f"{total:g}" for total in totals[:5])),
        )


def check_finite(update: Pairs, batch: object, ids: Sequence[str], folder: Path, limit: int) -> None:
    """Ends the run after `limit` updates in a row without a finite gradient, and saves the last of their batches.

    Args:
        update: metrics of an update.
        batch: a pytree with everything the update saw.
        ids: samples in it.
        folder: of the run.

    Raises:
        TrainingError: names the folder with the batch.
    """
    streak = int(update[NONFINITE_STREAK][0])
    if streak < limit:
        return
    place = folder / "nonfinite"
    leaves, _ = jax.tree_util.tree_flatten_with_path(fetch(batch))
    on_main(lambda: _save_batch(place, leaves, ids))
    raise TrainingError(
        f"{streak} updates in a row had no finite gradient; none of them was applied",
        where=f"the batch is in {place}",
        fix="Look at the samples it names, lower optimizer.learning_rate, or set dtype: float32; the same command "
        "then goes on from the newest checkpoint",
    )


def _save_batch(place: Path, leaves: Sequence[tuple], ids: Sequence[str]) -> None:
    place.mkdir(exist_ok=True)
    np.savez(place / "batch.npz", **{jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves})
    write_json(place / "samples.json", list(ids))


def warn_about_shards(rows: int, shards: int, fix: str) -> None:
    """Says so if the rows of an update cannot be split over the devices: every device then computes all of them.

    Args:
        rows: that go through the model at once.
        shards: of the mesh.
        fix: a change of the recipe after which they can.
    """
    if rows % shards:
        log.warning(
            "an update has %d group rows, which %d data shards cannot share: every device computes all of them. "
            "Set %s, or shards of the mesh that divide %d",
            *(rows, shards, fix, rows),
        )


def warn_about_context(mesh: Mesh, data: DataConfig) -> None:
    """Says so if rows of some length cannot be split over `context`: each of its devices then computes all of them."""
    if (devices := mesh.shape["context"]) == 1:
        return
    for name in ("prompt_lengths", "branch_lengths"):
        rungs = getattr(data, name) or (bucket(1), bucket(bucket(1) + 1))
        if uneven := [rung for rung in rungs if rung % (2 * devices)]:
            log.warning(
                "mesh.context=%d cannot split rows where data.%s is %s: all of its devices compute all of them. "
                "Make the rungs multiples of %d",
                *(devices, name, ", ".join(map(str, uneven)), 2 * devices),
            )


def warn_about_sets(samples: Sequence[Sample]) -> None:
    """Says once which training sets are published benchmarks."""
    marked = Counter(sample.source for sample in samples if BENCHMARK in sample.tags)
    if marked:
        sets = ", ".join(f"{name} ({count} samples)" for name, count in marked.items())
        log.warning("published as benchmarks: %s. Do not report scores on them; *_clean recipes leave them out", sets)
