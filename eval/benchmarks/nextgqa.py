"""NExT-GQA: an answer and the segment that supports it."""

from collections.abc import Sequence

from videoauto_jax.data.datasets.video import lettered
from videoauto_jax.eval.benchmarks.base import Metrics, Row, Score, percentage, register, results
from videoauto_jax.eval.benchmarks.choice import Choice, letter_of
from videoauto_jax.eval.benchmarks.spans import NOWHERE, shown, span_metrics
from videoauto_jax.protocol.prompts import grounded_qa_prompt
from videoauto_jax.rewards.grounded import SEPARATOR
from videoauto_jax.rewards.interval import interval_iou, parse_interval


@register
class NextGQA(Choice):
    """The value of a score is that of its letter; the overlap is the best with any true segment."""

    name, title, repo, folder = "nextgqa", "NExT-GQA", "sming256/NeXTGQA", "nextgqa"
    columns = ("video", "question", "candidates", "answer", "solution")
    keep = ("candidates", "answer", "solution")
    problem_type = "gqa"
    headline = "m_iou"
    published = results(20.2, 36.7, 37.1, 44.2)
    plain_tokens = 16384

    def question(self, row: Row) -> str:
        return grounded_qa_prompt(row["question"], lettered(row["candidates"]), boxed=self.boxed)

    def media(self, row: Row) -> tuple[str, ...]:
        return (f"nextgqa_videos/{row['video']}", f"nextgqa_videos/{row['video']}.mp4")

    def options(self, row: Row) -> Sequence[str]:
        return row["candidates"]

    def truth(self, row: Row) -> dict[str, object]:
        spans = [[float(second) for second in span] for span in row["solution"]]
        return {"answer": letter_of(row["answer"], row["candidates"]), "segment": spans}

    def extract(self, text: str) -> str:
        """The letter."""
        return self.read(self.boxed_text(text).split(SEPARATOR)[0])

    def score(self, record: Row, text: str) -> Score:
        said, truth = self.boxed_text(text), self.truth(record)
        letter = self.read(said.split(SEPARATOR)[0], self.options(record))
        found = parse_interval(said.split(SEPARATOR)[-1], self.profile) or NOWHERE
        overlap = max(interval_iou(found, span) for span in truth["segment"])
        prediction = f"{letter} {SEPARATOR} {shown(found)}"
        return Score(float(letter == truth["answer"]), prediction=prediction, iou=overlap, groups=self.groups(record))

    def aggregate(self, scores: Sequence[Score]) -> Metrics:
        return {"accuracy": percentage(scores)} | span_metrics([score.iou for score in scores])
