"""Video-MMMU: what is learnt from a lecture, in three tracks."""

import re
import string
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
    mean,
    register,
    results,
)
from videoauto_jax.eval.benchmarks.choice import Choice
from videoauto_jax.eval.benchmarks.open_answer import open_answers, says_open_answer

_SUBJECTS = {
    "Art": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities": "History Literature Sociology Psychology",
    "Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
    "Mechanical_Engineering",
}
_FOLDER = {subject: folder for folder, subjects in _SUBJECTS.items() for subject in subjects.split()}
_MCQ = "Answer with the option's letter from the given choices directly and only give the best option."
_OPEN = "Please only provide the numerical value (e.g., 42 or 3.14)."
_IMAGE = "<image 1>"

NOTHING, EMPTY = "No Answer Found.", "API Error"
"""What the published code says where no option is named, and of an empty text, which it leaves out of the score."""
_NOTHING_SAID = ("", EMPTY)


@register
class VideoMMMU(Choice):
    """Multiple choice with up to ten options, and open questions for a number; adaptation shows a picture too."""

    name, title, repo, folder = "video_mmmu", "VideoMMMU", "lmms-lab/VideoMMMU", "video_mmmu"
    tasks = ("Adaptation", "Comprehension", "Perception")
    columns = ("id", "question", "options", "answer", "question_type")
    keep = ("id", "options", "answer", "question_type")
    headline, percent = "mmmu_acc", 100.0
    letters = string.ascii_uppercase[:10]
    published = results(54.7, 58.6, 61.0, 65.0)
    plain_tokens = 1024

    def question(self, row: Row) -> str:
        text, choose = row["question"], True
        if row.get(TASK) == "Adaptation":
            text = re.sub(r"\\<image 1\\>|<Image 1>", _IMAGE, text)
            text = text if _IMAGE in text else f"{text} {_IMAGE}"
            choose = row["question_type"] == "multiple-choice"
        post = POST_BOXED if self.boxed else _MCQ if choose else _OPEN
        return f"{text}\nOptions:\n{self._lettered(row)}\n{post}" if choose else f"{text}\n{post}"

    def media(self, row: Row) -> tuple[str, ...]:
        subject = _subject(row)
        return (f"{_FOLDER.get(subject, subject)}/{row['id']}.mp4",)

    def image(self, row: Row) -> object | None:
        found = row.get("image") if row.get(TASK) == "Adaptation" else None
        return (found.get("bytes") or found.get("path")) if isinstance(found, dict) else found

    def image_mark(self) -> str:
        """As published, the picture stands in the text where baselines are asked, and before it for a boxed answer."""
        return "" if self.boxed else r"<image \d+>"

    def options(self, row: Row) -> Sequence[str]:
        """Without letters; as published, the letters that they may begin with are looked for with them."""
        options = row.get("options")
        options = () if options is None else options
        return options if self.profile == "paper" else [re.sub(r"^[A-J]\.\s*", "", option) for option in options]

    def truth(self, row: Row) -> str:
        return str(row["answer"])

    def groups(self, row: Row) -> dict[str, str]:
        task = {"track": row[TASK].lower()} if TASK in row else {}
        subject = _subject(row)
        return task | ({"discipline": _FOLDER.get(subject, subject), "subject": subject} if subject else {})

    def read(self, said: str, options: Sequence[str] = ()) -> str:
        if self.profile == "strict":
            return super().read(said, options)
        return EMPTY if said in _NOTHING_SAID else _named_option(said, options)

    def score(self, record: Row, text: str) -> Score:
        score = super().score(record, text) if self._is_choice(record) else self._score_open(record, text)
        score.counted = self.profile == "strict" or score.prediction != EMPTY
        return score

    def aggregate(self, scores: Sequence[float]) -> Metrics:
        """The mean over tracks, each counting alike; one of which no answer counts is 0."""
        tracks = [counted(part) for part in by_group(scores, "track").values()]
        return {self.headline: mean([round(mean(part) or 0.0, 5) for part in tracks])}

    def _is_choice(self, row: Row) -> bool:
        kind = row.get("question_type", "multiple-choice")
        return kind == "multiple-choice" or (kind == "perception" and self.profile == "strict")

    def _score_open(self, row: Row, text: str) -> Score:
        """As published, a question of type `perception` is parsed as open and compared as a choice: never right."""
        said = self.boxed_text(text)
        right = says_open_answer(said, self.truth(row), self.profile) and row["question_type"] != "perception"
        prediction = "; ".join(map(str, open_answers(said))) if said not in _NOTHING_SAID else EMPTY
        return Score(float(right), prediction=prediction, groups=self.groups(row))

    def _lettered(self, row: Row) -> str:
        options = row["options"]
        has_letters = all(option.startswith(f"{letter}.") for letter, option in zip(self.letters, options))
        return "\n".join(options) if has_letters else lettered(options)


def _subject(row: Row) -> str:
    return "_".join(row.get("id", "").split("_")[1:-1])


def _named_option(text: str, options: Sequence[str]) -> str:
    """The option a text names by the first of these forms that occurs: `A.` or `A:`, `(A)`, `A `, its text.

    Of several the last, but as published: where one stands as `A.`, that is what is looked for, and not `B:`; `A ` is
    found at the end of a word too (`NASA `) and then looked for by itself; what is nowhere counts as before everything.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = string.ascii_uppercase[: len(options) or 4]
    held = lambda form: [letter for letter in letters if form.format(letter) in text]  # noqa: E731
    last = lambda named, form: max(named, key=lambda letter: text.rfind(form.format(letter)))  # noqa: E731
    dotted, with_colon = held("{}."), held("{}:")
    if dotted or with_colon:
        return last(dotted + with_colon, "{}." if dotted else "{}:")
    for form, looked_for in (("({})", "({})"), ("{} ", " {} ")):
        if named := held(form):
            return last(named, looked_for)
    if len(text.split()) > 5:
        places = {letter: text.lower().rfind(option.lower()) for letter, option in zip(letters, options)}
        return max(places, key=places.get) if max(places.values(), default=-1) >= 0 else NOTHING
    return NOTHING
