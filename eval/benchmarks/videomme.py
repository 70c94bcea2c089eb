"""Video-MME: multiple choice about short, medium and long videos."""

import re
from collections.abc import Sequence

from videoauto_jax.eval.benchmarks.base import POST_BOXED, Row, register, results
from videoauto_jax.eval.benchmarks.choice import Choice

_TASK = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


@register
class VideoMME(Choice):
    """Options come with their letters."""

    name, title, repo, folder = "videomme", "VideoMME", "lmms-lab/Video-MME", "videomme"
    columns = ("question", "options", "answer", "videoID", "duration", "domain", "sub_category", "task_type")
    keep = ("options", "answer", "duration", "domain", "sub_category", "task_type")
    headline = "videomme_perception_score"
    letters = "ABCD"
    published = results(66.0, 67.3, 72.5, 71.7)

    def question(self, row: Row) -> str:
        post = POST_BOXED if self.boxed else "\nAnswer with the option's letter from the given choices directly."
        return "\n".join([_TASK, row["question"], *row["options"], post])

    def media(self, row: Row) -> tuple[str, ...]:
        return tuple(f"data/{row['videoID']}{suffix}" for suffix in (".mp4", ".MP4", ".mkv"))

    def truth(self, row: Row) -> str:
        return row["answer"]

    def options(self, row: Row) -> Sequence[str]:
        return [re.sub(r"^[A-D]\.\s*", "", option) for option in row.get("options", ())]

    def groups(self, row: Row) -> dict[str, str]:
        names = {"duration": "duration", "domain": "domain", "sub_category": "sub-category", "task_type": "task type"}
        return {shown: row[name] for name, shown in names.items() if row.get(name) is not None}
