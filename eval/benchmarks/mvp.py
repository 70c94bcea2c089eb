"""Minimal Video Pairs: the same question about two nearly equal videos; both have to be right."""

import ast
import re
from collections.abc import Sequence

from videoauto_jax.data.datasets.video import lettered
from videoauto_jax.eval.benchmarks.base import TASK, Metrics, Row, Score, by_group, mean, percentage, register, results
from videoauto_jax.eval.benchmarks.choice import Choice, letter_of

_BOXED = (
    " \nPut your final answer in \\boxed{} with a single letter from A or B, format exactly like: "
    "'\\boxed{Answer: A}' or '\\boxed{Answer: B}'."
)
_PLAIN = (
    " \nEven when unsure, always answer with a single letter from A or B, format exactly like: "
    "'Answer: A' or 'Answer: B'."
)
_LETTER = re.compile(r"(?:answer|assistant)?\s*:?\s*([ab])\b")


@register
class MVPMini(Choice):
    """The split whose pair accuracy is published. Videos of a pair share their id up to its last `_`."""

    name, title, split = "mvp_mini", "MVP (mini)", "mini"
    repo, folder = "sming256/MinimalVideoPairs", "minimal_video_pairs"
    tasks = ("human_object_interactions", "intuitive_physics", "robot_object_interactions", "temporal_reasoning")
    columns = ("question", "candidates", "answer", "video_id", "video_path")
    keep = ("candidates", "answer", "video_id")
    headline = "pair_accuracy"
    letters = "AB"
    published = results(36.5, 39.4, 40.5, 43.0)
    plain_tokens = 32768
    begun = "\\boxed{Answer:"

    def question(self, row: Row) -> str:
        post = _BOXED if self.boxed else _PLAIN
        return f"Question: {row['question']}\nOptions:\n{lettered(self.options(row))}{post}"

    def media(self, row: Row) -> tuple[str, ...]:
        return (row["video_path"].lstrip("/"),)

    def options(self, row: Row) -> Sequence[str]:
        """A list, or the text of one."""
        found = row["candidates"]
        return ast.literal_eval(found) if isinstance(found, str) else found

    def truth(self, row: Row) -> str:
        return letter_of(row["answer"], self.options(row))

    def unit(self, row: Row) -> str:
        return row.get("video_id", "").rpartition("_")[0]

    def groups(self, row: Row) -> dict[str, str]:
        return {"task": row[TASK]} if TASK in row else {}

    def read(self, said: str, options: Sequence[str] = ()) -> str:
        """As published: an a or b that ends a word, the second one where there are several."""
        if self.profile == "strict":
            return super().read(said, options)
        found = _LETTER.findall(said.lower())
        return found[min(1, len(found) - 1)].upper() if found else ""

    def score(self, record: Row, text: str) -> Score:
        score = super().score(record, text)
        score.unit = self.unit(record)
        return score

    def aggregate(self, scores: Sequence[Score]) -> Metrics:
        """Means over tasks, each task counting alike; half a pair counts in no pair accuracy."""
        tasks = by_group(scores, "task").values()
        pairs = [_pairs(part) for part in tasks]
        return {
            "pair_accuracy": mean([percentage(part) for part in pairs if part]),
            "single_accuracy": mean([percentage(part) for part in tasks]),
        }


@register
class MVP(MVPMini):
    """All pairs."""

    name, title, split, published = "mvp", "MVP", "full", {}


def _pairs(scores: Sequence[Score]) -> list[float]:
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(score.unit, []).append(score)
    return [float(all(pair)) for pair in found.values() if len(pair) == 2]
