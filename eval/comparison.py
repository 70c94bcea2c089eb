"""Two evaluations side by side: differences on the samples both answered, with paired bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from videoauto_jax.errors import ConfigError, DataError
from videoauto_jax.eval.benchmarks.base import Score
from videoauto_jax.eval.records import Record, by_benchmark
from videoauto_jax.eval.scoring import is_right, thinks
from videoauto_jax.eval.tables import Sheet
from videoauto_jax.protocol.grammar import Profile

Side = tuple[Sequence[Record], str, float]
"""Records, the mode that counts and its threshold."""

_Headline = Callable[[Sequence[float]], float | None]


def compare(a: Side, b: Side, profile: Profile, *, resamples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """Scores of two evaluations, and how far apart they are.

    Videos are resampled, with all questions about them: those are not independent. Both sides always take the same
    ones. The interval holds 95 % of the resampled differences.

    Returns:
        `{name: {"a", "b", "difference", "low", "high", "tokens_a", "tokens_b", "n", "videos"}}` per benchmark, and
        under `data sets` for everything else; scores in percent.

    Raises:
        DataError: they have no sample in common, or under one id two that are not the same.
        ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed}", where="seed", fix="Give 0 or more")
    common = _common(a[0], b[0])
    sides = [_by_name(side, common) for side in (a, b)]
    rng = np.random.default_rng(seed)
    return {name: _compare(sides[0][name], sides[1][name], profile, resamples, rng) for name in sides[0]}


def _common(a: Sequence[Record], b: Sequence[Record]) -> set[str]:
    """Ids of the samples on both sides. Prompts and folders may differ, the video's name and the truth may not."""
    fix = "Compare two evaluations of the same benchmarks or data sets"
    ours, theirs = ({one["id"]: (one.get("truth"), Path(one["media"] or "").stem) for one in side} for side in (a, b))
    common = ours.keys() & theirs.keys()
    if not common:
        raise DataError("the two evaluations have no sample in common", fix=fix)
    if other := sorted(name for name in common if ours[name] != theirs[name]):
        raise DataError(f"{other[0]} is another sample in each of the two evaluations", fix=fix)
    return common


def _by_name(side: Side, common: set[str]) -> dict[str, Side]:
    shared = [record for record in sorted(side[0], key=lambda record: record["id"]) if record["id"] in common]
    return {name: (part, *side[1:]) for name, part in by_benchmark(shared).items()}


def _compare(a: Side, b: Side, profile: Profile, resamples: int, rng: np.random.Generator) -> dict:
    (headline, ours, our_tokens), (_, theirs, their_tokens) = _scored(a, profile), _scored(b, profile)
    clusters = _clusters(a[0], ours)
    differences = []
    for _ in range(resamples):
        drawn = rng.integers(len(clusters), size=len(clusters))
        pair = [headline(_drawn(scores, clusters, drawn)) for scores in (ours, theirs)]
        if None not in pair:
            differences.append(pair[1] - pair[0])
    low, high = np.percentile(differences, (2.5, 97.5)) if differences else (None, None)
    one, other = headline(ours), headline(theirs)
    return {
        "a": one,
        "b": other,
        "difference": None if None in (one, other) else other - one,
        "low": low,
        "high": high,
        "tokens_a": our_tokens,
        "tokens_b": their_tokens,
        "n": len(ours),
        "videos": len(clusters),
    }


def _scored(side: Side, profile: Profile) -> tuple[_Headline, list[Score], float]:
    """How scores become a percentage, the scores, and the mean tokens."""
    records, mode, threshold = side
    if records[0]["benchmark"] is not None:
        sheet = Sheet(records, profile)
        thinking = sheet.thinking(mode, threshold)
        return sheet.benchmark.headline_of, sheet.scores(thinking), float(sheet.tokens(thinking).mean())
    thinking = [thinks(record, threshold, mode) for record in records]
    scores = [Score(is_right(record, ("first", "second")[which])) for record, which in zip(records, thinking)]
    tokens = [record[("first_tokens", "tokens")[which]] for record, which in zip(records, thinking)]
    return lambda values: 100 * float(np.mean(values)), scores, float(np.mean(tokens))


def _clusters(records: Sequence[Record], scores: Sequence[Score]) -> list[list[int]]:
    """Places of the records that belong together: of one pair, else about one video."""
    found: dict[object, list[int]] = {}
    for place, (record, score) in enumerate(zip(records, scores)):
        found.setdefault(score.unit or record["media"] or record["id"], []).append(place)
    return list(found.values())


def _drawn(scores: Sequence[Score], clusters: Sequence[Sequence[int]], drawn: np.ndarray) -> list[Score]:
    """The scores of the clusters drawn; a pair drawn twice is two pairs."""
    return [_copy(scores[place], number) for number, which in enumerate(drawn) for place in clusters[which]]


def _copy(score: Score, number: int) -> Score:
    if not score.unit:
        return score
    kept: Mapping = {name: getattr(score, name) for name in ("prediction", "iou", "counted", "groups")}
    return Score(score, **kept, unit=f"{number}/{score.unit}")
