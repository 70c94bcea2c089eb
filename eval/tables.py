"""Scores of benchmarks from records: per mode, per category, at any threshold."""

from collections.abc import Mapping, Sequence

import numpy as np

from videoauto_jax.eval.benchmarks.base import Benchmark, Score, benchmark
from videoauto_jax.eval.records import OTHERS, Record, by_benchmark, judge
from videoauto_jax.eval.scoring import thinks
from videoauto_jax.protocol.grammar import Profile


class Sheet:
    """The records of one benchmark with the scores of both answers.

    Attributes:
        benchmark: what judges them.
        records: in their order.
    """

    def __init__(self, records: Sequence[Record], profile: Profile):
        """
        Args:
            records: at least one, all of one benchmark.
        """
        self.records = list(records)
        self.benchmark: Benchmark = benchmark(records[0]["benchmark"], profile, boxed=records[0]["boxed"])
        self._scores: dict[str, list[Score]] = {
            which: [judge(record, which, profile)[1] for record in records] for which in ("first", "second")
        }

    def thinking(self, mode: str, threshold: float) -> list[bool]:
        """Which records' second answer counts."""
        return [thinks(record, threshold, mode) for record in self.records]

    def scores(self, thinking: Sequence[bool]) -> list[Score]:
        """The score of every record's answer that counts."""
        pairs = zip(self._scores["first"], self._scores["second"])
        return [pair[thought] for pair, thought in zip(pairs, thinking)]

    def tokens(self, thinking: Sequence[bool]) -> list[int]:
        """The tokens of every record's answer that counts."""
        return [record["tokens" if thought else "first_tokens"] for record, thought in zip(self.records, thinking)]

    def result(self, mode: str, threshold: float) -> dict:
        """`{"metrics", "score", "tokens": {"mean", "p50", "p95"}, "think_ratio", "breakdown"}` of a mode.

        `score` is the headline in percent.
        """
        thinking = self.thinking(mode, threshold)
        scores, tokens = self.scores(thinking), self.tokens(thinking)
        return {
            "score": self.benchmark.headline_of(scores),
            "metrics": self.benchmark.aggregate(scores),
            "tokens": _quantiles(tokens),
            "think_ratio": sum(thinking) / len(thinking),
            "breakdown": self.benchmark.breakdown(scores),
        }

    def curve(self, thresholds: Sequence[float]) -> list[dict]:
        """`{"threshold", "score", "tokens", "think_ratio"}` of mode `auto` at every threshold."""
        points, known = [], {}
        for threshold in thresholds:
            thinking = tuple(self.thinking("auto", threshold))
            if thinking not in known:
                known[thinking] = {
                    "score": self.benchmark.headline_of(self.scores(thinking)),
                    "tokens": float(np.mean(self.tokens(thinking))),
                    "think_ratio": sum(thinking) / len(thinking),
                }
            points.append({"threshold": float(threshold), **known[thinking]})
        return points


def sheets(records: Sequence[Record], profile: Profile) -> dict[str, Sheet]:
    """A sheet per benchmark, in the order of the records; records of data sets are left out."""
    return {name: Sheet(part, profile) for name, part in by_benchmark(records).items() if name != OTHERS}


def _quantiles(values: Sequence[int]) -> Mapping[str, float]:
    middle, most = np.percentile(values, (50, 95))
    return {"mean": float(np.mean(values)), "p50": float(middle), "p95": float(most)}
