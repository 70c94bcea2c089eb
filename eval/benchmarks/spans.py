"""Temporal grounding: the located segment's overlap with the true ones."""

from collections.abc import Sequence

from videoauto_jax.eval.benchmarks.base import Benchmark, Metrics, Row, Score, percentage
from videoauto_jax.protocol.prompts import grounding_prompt
from videoauto_jax.rewards.interval import Interval, interval_iou, parse_interval

THRESHOLDS = (0.3, 0.5, 0.7)
NOWHERE = (0.0, 0.0)


def span_metrics(overlaps: Sequence[float]) -> Metrics:
    """Recall at every threshold and mean IoU, in percent."""
    recalls = {f"iou_{t}": percentage([float(overlap >= t) for overlap in overlaps]) for t in THRESHOLDS}
    return recalls | {"m_iou": percentage(overlaps)}


def published_iou(found: Interval, truth: Sequence[float]) -> float:
    """What they share over what they span together, as published: nothing where the truth ends before it begins."""
    hull = max(found[1], truth[1]) - min(found[0], truth[0])
    return max(min(found[1], truth[1]) - max(found[0], truth[0]), 0.0) / hull if hull else 0.0


def shown(span: Interval) -> str:
    """A segment as prompts write it."""
    return f"[{span[0]}, {span[1]}]"


class Grounding(Benchmark):
    """Where in the video is what a caption tells of? What cannot be read counts as [0, 0]."""

    columns = ("video", "caption", "timestamp")
    keep = ("timestamp",)
    problem_type = "iou"
    headline = "m_iou"
    plain_tokens = 512
    videos: str

    def question(self, row: Row) -> str:
        return grounding_prompt(row["caption"], boxed=self.boxed)

    def media(self, row: Row) -> tuple[str, ...]:
        return (f"{self.videos}/{row['video']}", f"{self.videos}/{row['video']}.mp4")

    def truth(self, row: Row) -> list[float]:
        return [float(second) for second in row["timestamp"]]

    def extract(self, text: str) -> str:
        return shown(parse_interval(self.boxed_text(text), self.profile) or NOWHERE)

    def score(self, record: Row, text: str) -> Score:
        found = parse_interval(self.boxed_text(text), self.profile) or NOWHERE
        overlap = (published_iou if self.profile == "paper" else interval_iou)(found, self.truth(record))
        return Score(overlap, prediction=shown(found), iou=overlap, groups=self.groups(record))

    def aggregate(self, scores: Sequence[float]) -> Metrics:
        return span_metrics([float(score) for score in scores])
