"""What an evaluation keeps of a sample: one flat JSON record with both answers and their grades.

Every score, table and curve is computed from these records, so none of them needs the model again.
"""

from collections.abc import Mapping, Sequence

from videoauto_jax.data.annotations import Sample
from videoauto_jax.protocol.grammar import Profile, first_answer, second_answer
from videoauto_jax.rewards import RewardPool
from videoauto_jax.rewards.grounded import SEPARATOR
from videoauto_jax.sampling.answer import Answer

Record = Mapping[str, object]
GROUNDED = ("iou", "gqa")
"""Problem types that ask for an interval."""


def make_records(
    samples: Sequence[Sample], answers: Sequence[Answer], pool: RewardPool, *, profile: Profile = "paper"
) -> list[dict]:
    """Records of answered samples, graded.

    `first_answer` and `final_answer` are read from the text under the profile. A response without a closed thought has,
    as published, the only box of its whole text as final answer under `paper`, and none under `strict`.

    The grades are unweighted and without bonus: `score_first` and `score_second` as `rewards.grade` gives them,
    `iou_first` and `iou_second` the interval's part of it, null where no interval was asked for.

    Raises:
        DataError: a problem type without a grader.
    """
    records = [_record(sample, answer, profile) for sample, answer in zip(samples, answers, strict=True)]
    for which, field in (("first", "first_answer"), ("second", "final_answer")):
        texts = [record[field] for record in records]
        scores = pool.grade_many(
            [(text, sample.answer, sample.problem_type) for text, sample in zip(texts, samples)], profile=profile
        )
        for record, text, sample, score in zip(records, texts, samples, scores):
            record[f"score_{which}"] = score
            record[f"iou_{which}"] = _iou(text, sample, score, pool, profile)
    return records


def question(sample: Sample) -> str:
    """The user's text, without its visuals."""
    content = sample.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _record(sample: Sample, answer: Answer, profile: Profile) -> dict:
    return {
        "id": sample.id,
        "source": sample.source,
        "tags": list(sample.tags),
        "problem_type": sample.problem_type,
        "truth": sample.answer,
        "question": question(sample),
        "media": sample.media,
        "text": answer.text,
        "first_answer": first_answer(answer.text, profile),
        "final_answer": second_answer(answer.text, profile),
        "reasoning": answer.reasoning,
        "confidence": answer.confidence,
        "tokens": len(answer.token_ids),
        "first_tokens": answer.first_tokens,
        "finish_reason": answer.finish_reason,
    }


def _iou(text: str, sample: Sample, score: float, pool: RewardPool, profile: Profile) -> float | None:
    if sample.problem_type == "iou":
        return score
    if sample.problem_type != "gqa":
        return None
    truth = sample.answer.get("segment") if isinstance(sample.answer, Mapping) else None
    return pool.grade_many([(text.split(SEPARATOR)[-1], truth, "iou")], profile=profile)[0]
