"""`videoauto data check`: every annotation and media file of a recipe, read once."""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import rich
from rich.table import Table

from videoauto_jax.cli.progress import progress_bar
from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.audit import audit
from videoauto_jax.data.collate import bucket
from videoauto_jax.data.manifest import Entry, read_manifest, sample_key, write_entry
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import UsageError
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.rewards import require_graders
from videoauto_jax.train.recipe import GRPOConfig, SFTConfig


@dataclasses.dataclass(frozen=True)
class DataVerbConfig:
    """What is done with the data of a recipe of `train`, `sft` or `eval`.

    Attributes:
        model: HF folder whose processor reads the data.
        data: the data; `data.manifest` is the file that is written, and continued by a second start.
        action: check.
        timeout_s: seconds for one sample.
    """

    recipes: ClassVar[tuple[type, ...]] = (GRPOConfig, SFTConfig, EvalConfig)

    model: str
    data: DataConfig = DataConfig()
    action: Literal["check"] = "check"
    timeout_s: float = 120.0


CONFIG = DataVerbConfig
HELP = "Reads every annotation and media file of a recipe: `videoauto data check -c RECIPE`."
POSITIONAL = ("action",)


def run(config: DataVerbConfig, *, force: bool) -> None:
    """Writes the manifest and prints what training will leave out; `force` reads everything anew.

    What was damaged is read again: it may have been mended, or had not been unpacked yet.

    Raises:
        UsageError: the recipe names no manifest.
        DataError: annotations that cannot be used, or a problem type that nothing grades.
    """
    data = config.data
    if not data.manifest:
        raise UsageError("no file to write to", where="data.manifest", fix="Add data.manifest=FILE.jsonl")
    processor = dataclasses.replace(data, max_prompt_tokens=None).processor(config.model)
    samples = data.samples(keep_missing=True)
    require_graders((sample.problem_type, sample.id) for sample in samples)
    known = {} if force else read_manifest(data.manifest)
    keys = [sample_key(sample, processor) for sample in samples]
    todo = [sample for sample, key in zip(samples, keys) if key not in known or known[key].reason]
    start, read = time.perf_counter(), 0
    with progress_bar("data check") as report:
        for entry in audit(todo, processor, workers=max(data.workers, 1), timeout_s=config.timeout_s):
            write_entry(data.manifest, entry)
            known[entry.key], read = entry, read + 1
            report(read, len(todo), {})
    _show(samples, [known[key] for key in keys], data)
    seconds = time.perf_counter() - start
    rich.print(f"{read} samples read in {seconds:.0f} s, {len(samples) - read} known; all in {data.manifest}")


def _show(samples: Sequence[Sample], entries: Sequence[Entry], data: DataConfig) -> None:
    by_set, bound = defaultdict(list), data.max_prompt_tokens or math.inf
    for sample, entry in zip(samples, entries):
        by_set[sample.source].append(entry)
    table = Table("set", "samples", "damaged", "too long", "hours", "tokens: median", "95 %", "most")
    for name, found in by_set.items():
        whole = [entry for entry in found if not entry.reason]
        long = sum(entry.tokens > bound for entry in whole)
        hours = sum(entry.duration for entry in whole) / 3600
        tokens = np.quantile([entry.tokens for entry in whole] or [0], [0.5, 0.95, 1.0])
        counts = (len(found), len(found) - len(whole), long)
        table.add_row(name, *map(str, counts), f"{hours:.1f}", *(f"{number:.0f}" for number in tokens))
    rich.print(table)
    used = [entry for entry in entries if not entry.reason and entry.tokens <= bound]
    if used:
        rich.print(f"prompt lengths that fit: data.prompt_lengths={_ladder([entry.tokens for entry in used])}")
    for entry in [entry for entry in entries if entry.reason][:10]:
        rich.print(f"[red]damaged[/] {entry.id}: {entry.reason}")


def _ladder(sizes: Sequence[int]) -> list[int]:
    """Three rungs: half of the prompts, nearly all, and the longest."""
    return sorted({bucket(int(np.quantile(sizes, share))) for share in (0.5, 0.95, 1.0)})
