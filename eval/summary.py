"""What an evaluation found, as one JSON object: everything that tables and reports show."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from videoauto_jax.eval.benchmarks.base import benchmark, known_benchmarks
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.cost import fit_cost, wall_seconds
from videoauto_jax.eval.records import Record
from videoauto_jax.eval.scoring import ALWAYS_THINK, reliability, score_modes, threshold_curve
from videoauto_jax.eval.tables import Sheet, sheets

CURVE = (*(float(t) for t in np.round(np.linspace(0, 1, 51), 2)), ALWAYS_THINK)
"""Thresholds of the curves."""


def summarize(
    config: EvalConfig, records: Sequence[Record], skipped: Sequence[Mapping] = (), timings: Sequence[Mapping] = ()
) -> dict:
    """The scores of an evaluation, over all records (`eval`) and benchmark by benchmark (`benchmarks`).

    `unscored` are the benchmarks of which every sample was skipped, and of how many. `seconds` are those in which any
    process was answering, `waited` those in which one had no prompt, of all processes together.

    Args:
        records: at least one.
        skipped: samples without a prompt.
        timings: what answers took; without them there are no seconds.
    """
    threshold, modes = config.sampling.threshold, config.scored_modes
    summary = {
        "model": config.model,
        "mode": config.sampling.mode,
        "headline_mode": config.headline_mode,
        "profile": config.profile,
        "threshold": threshold,
        "compared_with": config.published,
        "n": len(records),
        "eval": score_modes(records, threshold, modes=modes),
        "benchmarks": {
            name: _benchmark(sheet, config, skipped, timings) for name, sheet in sheets(records, config.profile).items()
        },
        "unscored": _unscored(records, skipped),
        "reliability": reliability(records),
        "skipped": list(skipped),
        "seconds": wall_seconds(timings),
        "waited": sum(line["waited"] for line in timings),
    }
    # What the gate cut short has no second answer, so only a full pass tells of other thresholds.
    return summary | ({"curve": threshold_curve(records, CURVE)} if {"second", "auto"} <= set(modes) else {})


def _unscored(records: Sequence[Record], skipped: Sequence[Mapping]) -> dict[str, int]:
    answered = {record["benchmark"] for record in records}
    lost = Counter(skip["source"] for skip in skipped if skip["source"] not in answered)
    return {benchmark(name).title: n for name, n in lost.items() if name in known_benchmarks()}


def _benchmark(sheet: Sheet, config: EvalConfig, skipped: Sequence[Mapping], timings: Sequence[Mapping]) -> dict:
    chosen, threshold, modes = sheet.benchmark, config.sampling.threshold, config.scored_modes
    mine = [line for line in timings if line["source"] == chosen.name]
    lost = [skip for skip in skipped if skip["source"] == chosen.name]
    found = {
        "title": chosen.title,
        "headline": chosen.headline,
        "n": len(sheet.records),
        "skipped": len(lost),
        "published": dict(chosen.published),
        "modes": {mode: sheet.result(mode, threshold) for mode in modes},
        **_speed(sheet, mine),
    }
    if "second" in modes and "auto" in modes:
        found |= {"curve": _curve(sheet, mine), "saved": _saved(found["modes"], sheet, mine)}
    return found


def _speed(sheet: Sheet, timings: Sequence[Mapping]) -> dict:
    """Seconds of the run, and videos answered about per minute; null where nothing was timed."""
    known = {line["id"] for line in timings}
    videos = {record["media"] for record in sheet.records if record["id"] in known and record["media"]}
    seconds = wall_seconds(timings)
    rate = 60 * len(videos) / seconds if seconds else None
    return {"seconds": seconds, "videos": len(videos), "videos_per_minute": rate}


def _curve(sheet: Sheet, timings: Sequence[Mapping]) -> list[dict]:
    """The curve of mode `auto`, with the seconds that a run at each threshold is expected to take."""
    cost = fit_cost(timings)
    prompts = sum(line["prompt_tokens"] for line in timings)
    expected = lambda tokens: cost and cost.seconds(prompts, tokens * len(sheet.records))  # noqa: E731
    return [point | {"seconds": expected(point["tokens"])} for point in sheet.curve(CURVE)]


def _saved(modes: Mapping[str, Mapping], sheet: Sheet, timings: Sequence[Mapping]) -> dict:
    """What stopping early saves against always thinking: tokens, and the seconds that writing them took."""
    tokens = (modes["second"]["tokens"]["mean"] - modes["auto"]["tokens"]["mean"]) * len(sheet.records)
    cost = fit_cost(timings)
    return {"tokens": tokens, "seconds": cost and cost.seconds(0, tokens)}
