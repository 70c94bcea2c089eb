"""LongVideoBench, validation split, videos without subtitles."""

import random
import string
from collections.abc import Sequence

from videoauto_jax.data.datasets.video import lettered
from videoauto_jax.eval.benchmarks.base import POST_BOXED, Metrics, Row, counted, mean, register, results
from videoauto_jax.eval.benchmarks.choice import MORE_PREFIXES, Choice, first_capital

_ABSENT = "N/A"


@register
class LongVideoBench(Choice):
    """Up to five options in columns of their own, `N/A` where there is none; the answer is a number."""

    name, title, split = "longvideobench", "LongVideoBench", "validation"
    repo, folder = "longvideobench/LongVideoBench", "longvideobench"
    columns = (
        "question", "option0", "option1", "option2", "option3", "option4", "correct_choice", "duration_group",
        "question_category", "video_path",
    )  # fmt: skip
    keep = ("option0", "option1", "option2", "option3", "option4", "correct_choice", "duration_group",
            "question_category")  # fmt: skip
    headline, percent = "lvb_acc", 100.0
    published = results(60.9, 60.5, 67.6, 67.4)
    plain_tokens = 32

    def question(self, row: Row) -> str:
        post = POST_BOXED if self.boxed else "Answer with the option's letter from the given choices directly.\n"
        return f"{row['question']}\nOptions:\n{lettered(self.options(row))}\n{post}"

    def media(self, row: Row) -> tuple[str, ...]:
        return (f"videos/{row['video_path']}",)

    def options(self, row: Row) -> Sequence[str]:
        found = [row.get(f"option{n}", _ABSENT) for n in range(5)]
        return [option for option in found if option is not None and option != _ABSENT]

    def truth(self, row: Row) -> str:
        return string.ascii_uppercase[int(row["correct_choice"])]

    def groups(self, row: Row) -> dict[str, str]:
        names = {"duration_group": "duration, s", "question_category": "category"}
        return {shown: str(row[name]) for name, shown in names.items() if name in row}

    def read(self, said: str, options: Sequence[str] = ()) -> str:
        """Without a letter the published code guesses with a generator of seed 0; `strict` takes it for no answer."""
        if self.profile == "strict":
            return super().read(said, options)
        letters = string.ascii_uppercase[: len(options) or len(self.letters)]
        return first_capital(said, self.letters, MORE_PREFIXES) or random.Random(0).choice(letters)

    def aggregate(self, scores: Sequence[float]) -> Metrics:
        share = mean(counted(scores))
        return {self.headline: None if share is None else round(share, 5)}
