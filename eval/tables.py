"""Scores of benchmarks from records: per mode, per category, at any threshold."""

from collections.abc import Mapping, Sequence

import numpy as np

from videoauto_jax.eval.benchmarks.base import Benchmark, Score, benchmark
from videoauto_jax.eval.records import OTHERS, Record, by_benchmark, judge
from videoauto_jax.eval.scoring import Gate
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
        self._gate = Gate(records)
        self._tokens = np.array([(record["first_tokens"], record["tokens"]) for record in records])

    def thinking(self, mode: str, threshold: float) -> np.ndarray:
        """Which records' second answer counts: booleans."""
        return self._gate.thinking(mode, threshold)

    def scores(self, thinking: np.ndarray) -> list[Score]:
        """The score of every record's answer that counts."""
        pairs = zip(self._scores["first"], self._scores["second"], thinking.tolist())
        return [second if thought else first for first, second, thought in pairs]

    def tokens(self, thinking: np.ndarray) -> np.ndarray:
        """The tokens of every record's answer that counts."""
        return self._tokens[np.arange(len(thinking)), thinking.astype(int)]

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
            "think_ratio": float(thinking.mean()),
            "breakdown": self.benchmark.breakdown(scores),
        }

    def curve(self, thresholds: Sequence[float]) -> list[dict]:
        """`{"threshold", "score", "tokens", "think_ratio"}` of mode `auto` at every threshold."""
        points, known = [], {}
        for threshold in thresholds:
            thinking = self.thinking("auto", threshold)
            count = int(thinking.sum())  # a higher threshold only adds to those that think
            if count not in known:
                known[count] = {
                    "score": self.benchmark.headline_of(self.scores(thinking)),
                    "tokens": float(self.tokens(thinking).mean()),
                    "think_ratio": count / len(thinking),
                }
            points.append({"threshold": float(threshold), **known[count]})
        return points


def sheets(records: Sequence[Record], profile: Profile) -> dict[str, Sheet]:
    """A sheet per benchmark, in the order of the records; records of data sets are left out."""
    return {name: Sheet(part, profile) for name, part in by_benchmark(records).items() if name != OTHERS}


def _quantiles(values: np.ndarray) -> Mapping[str, float]:
    middle, most = np.percentile(values, (50, 95))
    return {"mean": float(np.mean(values)), "p50": float(middle), "p95": float(most)}
