"""MVBench: twenty tasks about short clips, each a config of the data set."""

import re
from collections.abc import Sequence

from videoauto_jax.data.datasets.video import lettered
from videoauto_jax.eval.benchmarks.base import (
    POST_BOXED,
    TASK,
    Metrics,
    Row,
    Score,
    by_group,
    counted,
    register,
    results,
)
from videoauto_jax.eval.benchmarks.choice import Choice, letter_of

FOLDERS = {
    "action_sequence": "star/Charades_segment",
    "moving_count": "clevrer/video_validation",
    "action_prediction": "star/Charades_segment",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "scene_transition": "scene_qa/video",
    "object_shuffle": "perception/videos",
    "object_existence": "clevrer/video_validation",
    "fine_grained_pose": "nturgbd_convert",
    "unexpected_action": "FunQA_test/test",
    "moving_direction": "clevrer/video_validation",
    "state_change": "perception/videos",
    "object_interaction": "star/Charades_segment",
    "character_order": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "counterfactual_inference": "clevrer/video_validation",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "moving_attribute": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
}
"""Sub-task -> folder of its clips, which are cut already."""

_MARKS = ';/[]"{}()=+\\_->@`,?!<'
_PERIODS = 32
"""How many periods are taken out: as published, a flag stands where their number belongs."""


@register
class MVBench(Choice):
    """Options without letters; the answer is an option's text."""

    name, title, repo, split, folder = "mvbench", "MVBench", "OpenGVLab/MVBench", "train", "mvbench_video"
    revision, tasks = "video", tuple(FOLDERS)
    columns = ("video", "question", "candidates", "answer")
    keep = ("candidates", "answer")
    headline = "mvbench_accuracy"
    published = results(67.1, 71.0, 69.4, 72.0)

    def question(self, row: Row) -> str:
        post = POST_BOXED if self.boxed else "Only give the best option.\n"
        return f"Question: {row['question']}\nOptions:\n{lettered(row['candidates'], '({}) {}')}\n{post}"

    def media(self, row: Row) -> tuple[str, ...]:
        return (f"{FOLDERS[row[TASK]]}/{row['video']}",)

    def truth(self, row: Row) -> str:
        return letter_of(row["answer"], row["candidates"])

    def options(self, row: Row) -> Sequence[str]:
        return row["candidates"]

    def groups(self, row: Row) -> dict[str, str]:
        return {"task": row[TASK]} if TASK in row else {}

    def read(self, said: str, options: Sequence[str] = ()) -> str:
        return super().read(said, options) if self.profile == "strict" else _lone_letter(said)

    def expected(self, row: Row) -> str:
        """As published, the truth is read like an answer: a letter behind E in lower case."""
        return self.truth(row) if self.profile == "strict" else _lone_letter(self.truth(row))

    def score(self, record: Row, text: str) -> Score:
        score = super().score(record, text)
        # As published, nothing in the box is no answer at all, and leaves the denominator.
        score.counted = self.profile == "strict" or self.boxed_text(text) != ""
        return score

    def aggregate(self, scores: Sequence[float]) -> Metrics:
        """The mean over tasks, weighted by their sizes."""
        total = weight = 0.0
        for part in by_group(scores, "task").values():
            answered = counted(part)
            total += len(part) * 100 * sum(answered) / max(1, len(answered))
            weight += len(part)
        return {self.headline: total / weight if weight else None}


def _lone_letter(text: str) -> str:
    """The letter of `B. text` in one line, else the first of a to e that stands alone without punctuation, else all."""
    if option := re.match(r"([A-E])\.\s*.+$", text, re.IGNORECASE):
        return option[1].upper()
    line = text.replace("\n", " ").replace("\t", " ").strip()
    plain = line
    for mark in _MARKS:
        touches_space = f"{mark} " in line or f" {mark}" in line or re.search(r"\d,\d", line)
        plain = plain.replace(mark, "" if touches_space else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=_PERIODS).strip("'\"() ").lower()
    found = re.search(r"\b[a-e]\b", plain)
    return found[0].upper() if found else plain
