"""MMVU, validation split, multiple choice: expert questions in four disciplines."""

from collections.abc import Sequence

from videoauto_jax.eval.benchmarks.base import POST_BOXED, Row, Score, register, results
from videoauto_jax.eval.benchmarks.choice import Choice

DISCIPLINES = {
    "Science": "Astronomy Biology Chemistry Electromagnetism Geography Materials_Science Mechanics Modern_Physics "
    "Neurobiology Thermodynamics",
    "Engineering": "Biomedical_Engineering Civil_Engineering Computer_Science Electrical_Engineering "
    "Electronics_and_Communication Mechanical_Engineering",
    "Healthcare": "Basic_Medicine Clinical_Medicine Dentistry Pharmacy Preventive_Medicine",
    "Humanities": "Art Economics History Law Literature Management",
}
_DISCIPLINE = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects.split()}


@register
class MMVU(Choice):
    """Options by letter; the subject is the folder of the video."""

    name, title, repo, split, folder = "mmvu", "MMVU", "sming256/MMVU_MC", "validation", "mmvu"
    columns = ("question", "choices", "answer", "id", "video_path")
    keep = ("choices", "answer", "video_path")
    published = results(66.2, 69.7, 69.9, 71.1)

    def question(self, row: Row) -> str:
        post = POST_BOXED if self.boxed else "Answer with the option's letter from the given choices directly."
        options = "\n".join(f"{letter}. {text}" for letter, text in row["choices"].items() if text is not None)
        return f"Question: {row['question']}\nOptions:\n{options}\n{post}"

    def media(self, row: Row) -> tuple[str, ...]:
        return (row["video_path"],)

    def options(self, row: Row) -> Sequence[str]:
        """In the order of their letters; parquet fills letters that a row lacks with null."""
        return [text for _, text in sorted(row.get("choices", {}).items()) if text is not None]

    def truth(self, row: Row) -> str:
        return row["answer"]

    def groups(self, row: Row) -> dict[str, str]:
        subject = row["video_path"].split("/")[-2] if "/" in row.get("video_path", "") else ""
        return {"discipline": _DISCIPLINE.get(subject, subject), "subject": subject} if subject else {}

    def score(self, record: Row, text: str) -> Score:
        score = super().score(record, text)
        # As published, a subject that belongs to no discipline leaves the score.
        score.counted = self.profile == "strict" or score.groups.get("subject", "Art") in _DISCIPLINE
        return score
