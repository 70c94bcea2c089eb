"""Choosing the gate's threshold on a part of the records, and telling on the rest what it does."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from videoauto_jax.errors import ConfigError, DataError
from videoauto_jax.eval.cost import Cost, fit_cost
from videoauto_jax.eval.records import Record, by_benchmark
from videoauto_jax.eval.scoring import ALWAYS_THINK, reliability, score_modes, threshold_curve
from videoauto_jax.eval.tables import Sheet
from videoauto_jax.protocol.grammar import Profile

Point = dict[str, float | None]
MOST = 500
"""Thresholds that are tried: more confidences than that are represented by as many of their quantiles."""


def calibrate(
    records: Sequence[Record],
    profile: Profile,
    *,
    timings: Sequence[Mapping] = (),
    share: float = 0.5,
    seed: int = 0,
    tolerance: float = 0.5,
    budget: float | None = None,
) -> dict[str, dict]:
    """A threshold per benchmark, picked on one part of its videos and reported on the others.

    Args:
        records: of a pass that determines first and second answers (`Results.require`).
        profile: how they are judged.
        timings: lines of timings.jsonl, for seconds.
        share: part of the videos to pick on.
        seed: of that split.
        tolerance: percentage points that the score may lie behind the better of `first` and `second`.
        budget: most tokens of an answer, mean; given, the best score within it is picked instead.

    Returns:
        `{name: {"threshold", "picked", "reported", "first", "second", "curve", "pareto", "reliability"}}`: `picked` and
        `reported` are the points of the two parts at the threshold, `first` and `second` the fixed modes on the
        reported part; the curve, its Pareto front and the reliability are those of the part picked on. A point is
        `{"threshold", "score", "tokens", "think_ratio", "seconds", "n"}`.

    Raises:
        DataError: a part is empty.
        ConfigError: a negative tolerance.
    """
    if not tolerance >= 0:
        raise ConfigError(f"tolerance={tolerance}", where="tolerance", fix="Give percentage points, 0 or more")
    cost = fit_cost(timings)
    prompts = {line["id"]: line["prompt_tokens"] for line in timings}
    found = {}
    for name, part in by_benchmark(records).items():
        ours, rest = split(part, share, seed)
        if not ours or not rest:
            fix = "Give more videos, or another share="
            raise DataError(f"{name}: {len(part)} samples cannot be split", fix=fix)
        seconds = lambda some: _Seconds(cost, sum(prompts.get(record["id"], 0) for record in some))  # noqa: E731
        curves = [_Curve(some, profile, seconds(some)) for some in (ours, rest)]
        found[name] = _one(*curves, tolerance, budget)
    return found


def split(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Two parts of which no video is in both; a video's part depends on its file's name and the seed alone."""
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        name = f"{seed}/{Path(record['media'] or record['id']).name}"
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        parts[place >= share].append(record)
    return parts


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points than which no other has a better score for as few tokens, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point["tokens"], -(point["score"] or 0))):
        if not front or (point["score"] or 0) > (front[-1]["score"] or 0):
            front.append(point)
    return front


def pick(points: Sequence[Point], *, tolerance: float, budget: float | None) -> Point:
    """The point that spends least, of those that lose at most `tolerance` against never and always thinking; with a
    budget the best one that keeps it, the cheapest if none does.

    Args:
        points: a curve that begins with what thinks least and ends with what always thinks.
    """
    by_cost = sorted(points, key=lambda point: point["tokens"])
    score = lambda point: point["score"] or 0.0  # noqa: E731
    if budget is not None:
        return max([p for p in by_cost if p["tokens"] <= budget] or by_cost[:1], key=score)
    wanted = max(score(points[0]), score(points[-1])) - tolerance - 1e-9
    return next(point for point in by_cost if score(point) >= wanted)


class _Seconds:
    """Seconds that a part of the records is expected to take, from the tokens of its answers; None if unknown."""

    def __init__(self, cost: Cost | None, prompt_tokens: int):
        self._cost, self._prompts = cost, prompt_tokens

    def __call__(self, tokens: float) -> float | None:
        return self._cost and self._cost.seconds(self._prompts, tokens)


class _Curve:
    """Mode `auto` on some records of one benchmark, or of data sets."""

    def __init__(self, records: Sequence[Record], profile: Profile, seconds: _Seconds):
        self.records, self._seconds = records, seconds
        self._sheet = Sheet(records, profile) if records[0]["benchmark"] is not None else None

    def points(self, thresholds: Sequence[float]) -> list[Point]:
        if self._sheet is not None:
            found = self._sheet.curve(thresholds)
        else:
            names = ("threshold", "tokens", "think_ratio")
            found = [
                {name: point[name] for name in names} | {"score": 100 * point["accuracy"]}
                for point in threshold_curve(self.records, thresholds)
            ]
        n = len(self.records)
        return [point | {"seconds": self._seconds(point["tokens"] * n), "n": n} for point in found]

    def first(self) -> Point:
        fixed = self._sheet.result("first", 0.0) if self._sheet else None
        if fixed is not None:
            return {"score": fixed["score"], "tokens": fixed["tokens"]["mean"]}
        scores = score_modes(self.records, 0.0, modes=("first",), slices={"all": None})["first"]["all"]
        return {"score": 100 * scores["accuracy"], "tokens": scores["tokens"]}


def _candidates(records: Sequence[Record]) -> list[float]:
    """The confidences that divide the records, in order; at most `MOST`, evenly many records apart."""
    found = np.unique(np.array([one["confidence"] for one in records if one["confidence"] >= 0], np.float32))
    places = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST)).round().astype(int))
    return [float(confidence) for confidence in found[places]]


def _one(ours: _Curve, rest: _Curve, tolerance: float, budget: float | None) -> dict:
    points = ours.points([0.0, *_candidates(ours.records), ALWAYS_THINK])
    picked = pick(points, tolerance=tolerance, budget=budget)
    reported, second = rest.points([picked["threshold"], ALWAYS_THINK])
    return {
        "threshold": picked["threshold"],
        "picked": picked,
        "reported": reported,
        "first": rest.first(),
        "second": {name: second[name] for name in ("score", "tokens", "seconds")},
        "curve": points,
        "pareto": pareto(points),
        "reliability": reliability(ours.records),
    }
