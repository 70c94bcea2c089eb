"""Evaluation: held-out samples through the sampler, every answer written as it finishes, then the scores.

config.yaml     the recipe, written first; the same recipe continues, another one is refused
samples.jsonl   one record per answered sample (`eval.records`), in the order of the data
summary.json    the scores (`eval.scoring`)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from videoauto_jax.config import dump_config
from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.errors import DataError
from videoauto_jax.eval.batches import Slot, cut, encode_ahead
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.records import make_records
from videoauto_jax.eval.scoring import ALWAYS_THINK, reliability, score_modes, threshold_curve
from videoauto_jax.files import append_jsonl, claim_folder, read_jsonl, write_json
from videoauto_jax.models.config import read_config
from videoauto_jax.models.hf import load_model
from videoauto_jax.rewards import RewardPool, find_grader
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.sampler import Sampler
from videoauto_jax.sharding import make_mesh, place_inputs

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after every batch with samples done, samples in all, and the scores so far."""

CURVE = (*(float(t) for t in np.round(np.linspace(0, 1, 51), 2)), ALWAYS_THINK)
"""Thresholds of the curve in summary.json."""


def evaluate(config: EvalConfig, force: bool = False, progress: Progress | None = None) -> dict:
    """Runs an evaluation, or takes it up where it stopped; returns what it writes to `output/summary.json`.

    Samples whose prompt cannot be made (a missing or damaged video, a prompt too long) are listed under `skipped` and
    count in no score; the next start tries them again.

    Args:
        config: the recipe.
        force: begin anew in a folder that holds another evaluation.
        progress: told after every batch.

    Raises:
        UsageError: the folder holds something else, or results of another recipe.
        DataError: annotations that cannot be used, an unknown problem type, not one sample that can be read.
        ModelError: the folder is no model.
    """
    start = time.perf_counter()
    read_config(config.model)  # a wrong path is told before the folder is claimed for it
    samples = config.data.samples(config.prompt_variant, keep_missing=True)
    samples = choose(samples, config.limit, config.seed)
    for kind in {sample.problem_type for sample in samples}:
        find_grader(kind)
    folder = _claim(config, force)
    skipped = _answer_all(config, samples, folder / "samples.jsonl", progress)
    records = read_records(folder, samples)
    if not records:
        why = skipped[0]["reason"] if skipped else "the data sets are empty"
        raise DataError("not one sample could be evaluated", where=why, fix="Check the data sets and their media")
    summary = summarize(config, records) | {"skipped": skipped, "seconds": time.perf_counter() - start}
    write_json(folder / "summary.json", summary)
    return summary


def choose(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """`limit` samples drawn by `seed`, in their order; all of them where `limit` is None or larger."""
    if limit is None or limit >= len(samples):
        return list(samples)
    drawn = np.random.default_rng(seed).choice(len(samples), limit, replace=False)
    return [samples[i] for i in sorted(drawn)]


def read_records(folder: str | Path, samples: Sequence[Sample] | None = None) -> list[dict]:
    """The records of an evaluation's folder, in the order of `samples` if given. [] before the first answer."""
    path = Path(folder) / "samples.jsonl"
    found = {record["id"]: record for record in read_jsonl(path)} if path.exists() else {}
    if samples is None:
        return list(found.values())
    return [found[sample.id] for sample in samples if sample.id in found]


def summarize(config: EvalConfig, records: Sequence[Mapping]) -> dict:
    """The scores of an evaluation."""
    threshold, modes = config.sampling.threshold, config.scored_modes
    summary = {
        "model": config.model,
        "mode": config.sampling.mode,
        "profile": config.profile,
        "threshold": threshold,
        "n": len(records),
        "eval": score_modes(records, threshold, modes=modes),
        "reliability": reliability(records),
    }
    # What the gate cut short has no second answer, so only a full pass tells of other thresholds.
    return summary | ({"curve": threshold_curve(records, CURVE)} if "second" in modes else {})


class ModelAnswerer:
    """Prompts to answers with the recipe's model, which is loaded when the first batch arrives."""

    def __init__(self, config: EvalConfig, processor: Processor):
        self._config, self._processor = config, processor
        self._sampler: Sampler | None = None

    def __call__(self, prompts: Sequence[Encoded]) -> list[Answer]:
        config = self._config
        if self._sampler is None:
            self._mesh = make_mesh(config.mesh)
            model = load_model(config.model, self._mesh, config.dtype)
            self._sampler = Sampler(model, self._processor, config.sampling)
        # A short batch repeats its first prompt rather than compiling for another number of rows.
        rows = [*prompts, *[prompts[0]] * (config.sampling.prompts - len(prompts))]
        data = config.data
        inputs = self._processor.collate(rows, lengths=data.prompt_lengths, patches=data.patch_counts)
        groups = self._sampler.generate(prompts, 1, inputs=place_inputs(inputs, self._mesh))
        return [group[0] for group in groups]


def _answer_all(config: EvalConfig, samples: list[Sample], path: Path, progress: Progress | None) -> list[dict]:
    """Answers what `path` lacks; returns the samples that have no prompt."""
    records, skipped = read_records(path.parent, samples), []
    done = {record["id"] for record in records}
    batches = cut(samples, config.sampling.prompts, done)
    if not batches:
        return skipped
    data = config.data
    processor = data.processor(config.model)
    answer = ModelAnswerer(config, processor)
    slots = encode_ahead(batches, processor, workers=data.workers, prefetch=data.prefetch)
    with RewardPool(config.graders) as pool, closing(slots):
        for batch in slots:
            skipped += _damaged(batch)
            for record in _answer_batch(batch, done, answer, pool, config):
                append_jsonl(path, record)
                records.append(record)
            if progress is not None:
                progress(len(records) + len(skipped), len(samples), _so_far(records, config))
    return skipped


def _answer_batch(batch: list[Slot], done: set[str], answer, pool: RewardPool, config: EvalConfig) -> list[dict]:
    whole = [(sample, prompt) for sample, prompt in batch if not isinstance(prompt, str)]
    if all(sample.id in done for sample, _ in whole):
        return []
    answers = answer([prompt for _, prompt in whole])
    pairs = [(sample, one) for (sample, _), one in zip(whole, answers) if sample.id not in done]
    return make_records([s for s, _ in pairs], [a for _, a in pairs], pool, profile=config.profile)


def _damaged(batch: list[Slot]) -> list[dict]:
    failed = [(sample, prompt) for sample, prompt in batch if isinstance(prompt, str)]
    return [{"id": sample.id, "media": sample.media, "reason": reason} for sample, reason in failed]


def _so_far(records: Sequence[Mapping], config: EvalConfig) -> dict[str, float]:
    """Scores for the progress bar, of the mode the recipe is about."""
    mode = {"record": "auto"}.get(config.sampling.mode, config.sampling.mode)
    slices = {"all": None}
    scores = score_modes(records, config.sampling.threshold, modes=(mode,), slices=slices)[mode]["all"]
    return {name: scores[name] for name in ("accuracy", "tokens", "think_ratio") if scores[name] is not None}


def _claim(config: EvalConfig, force: bool) -> Path:
    holds = "an evaluation with other settings"
    fix = "Name another output=, or add --force to begin anew and lose those results"
    return claim_folder(config.output, dump_config(config), holds=holds, fix=fix, force=force)
