"""What an evaluation keeps of a sample: one flat JSON record with both answers and their grades.

Every score, table and curve is computed from these records, so none of them needs the model again.
"""

from collections.abc import Mapping, Sequence

from videoauto_jax.data.annotations import Sample
from videoauto_jax.eval.benchmarks.base import Benchmark, benchmark
from videoauto_jax.eval.cases import Case
from videoauto_jax.protocol.grammar import CLOSE, OPEN, Profile, first_answer, second_answer
from videoauto_jax.rewards import RewardPool
from videoauto_jax.rewards.grounded import SEPARATOR
from videoauto_jax.sampling.answer import Answer

Record = Mapping[str, object]
GROUNDED = ("iou", "gqa")
"""Problem types that ask for an interval."""

ANSWERS = {"first": "first_answer", "second": "final_answer"}
"""Which answer -> the field that holds it."""

OTHERS = "data sets"
"""Under this name stand records that no benchmark judges."""


def by_benchmark(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the benchmark that judges them, each part in their order."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(record["benchmark"] or OTHERS, []).append(record)
    return parts


def make_records(
    cases: Sequence[Case], answers: Sequence[Answer], pool: RewardPool, *, profile: Profile = "paper"
) -> list[dict]:
    """Records of answered cases, graded, see `grade_records`.

    Raises:
        DataError: a problem type without a grader.
    """
    records = [_record(case, answer) for case, answer in zip(cases, answers, strict=True)]
    return grade_records(records, pool, profile=profile)


def grade_records(records: Sequence[Record], pool: RewardPool, *, profile: Profile) -> list[dict]:
    """The records with answers and grades as the profile finds them in their texts.

    `first_answer` and `final_answer` are the boxes' contents. A response without a closed thought has, as published,
    the only box of its whole text as final answer under `paper`, and none under `strict`.

    `score_first` and `score_second` are unweighted and without bonus, as `rewards.grade` or the benchmark gives them
    (of a grounded answer, the letter's plus the overlap); `iou_first` and `iou_second` the overlap, null where no
    interval was asked for. `read_first` and `read_second` are what a benchmark took for the answer.

    Raises:
        DataError: a problem type without a grader.
    """
    graded = [dict(record) for record in records]
    for which, field in ANSWERS.items():
        plain = []
        for record in graded:
            if record["benchmark"] is None:
                record[field] = _box(record["text"], which, profile)
                plain.append((record, record[field]))
            else:
                _judge(record, which, profile)
        _grade(plain, which, pool, profile)
    return graded


def judge(record: Record, which: str, profile: Profile) -> tuple[Benchmark, object]:
    """The benchmark of a record, and its score of the record's `first` or `second` answer."""
    chosen = benchmark(record["benchmark"], profile, boxed=record["boxed"])
    said = answer_text(record["text"], which, profile)
    if profile == "paper" and chosen.boxed:  # published answers lack what the prompt has begun for them
        said = said.removeprefix(chosen.begun)
    return chosen, chosen.score(record["row"], said)


def answer_text(text: str, which: str, profile: Profile) -> str:
    """The part of a response that is its `first` or `second` answer: before the thought, or behind it.

    Without a closed thought `paper` takes the whole text for the second; so does `strict`, unless a thought was begun.
    """
    if which == "first":
        return text.partition(OPEN)[0].strip()
    _, closed, tail = text.rpartition(CLOSE)
    if not closed and profile == "strict" and OPEN in text:
        return ""
    return tail.strip()


def question(sample: Sample) -> str:
    """The user's text, without its visuals."""
    content = next(message["content"] for message in reversed(sample.messages) if message["role"] == "user")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _record(case: Case, answer: Answer) -> dict:
    sample, chosen = case.sample, case.benchmark
    return {
        "id": sample.id,
        "source": sample.source,
        "benchmark": chosen.name if chosen else None,
        "boxed": chosen is None or chosen.boxed,
        "row": dict(case.row),
        "tags": list(sample.tags),
        "problem_type": sample.problem_type,
        "truth": sample.answer,
        "question": question(sample),
        "media": sample.media,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "confidence": answer.confidence,
        "tokens": len(answer.token_ids),
        "first_tokens": answer.first_tokens,
        "finish_reason": answer.finish_reason,
    }


def _box(text: str, which: str, profile: Profile) -> str:
    return first_answer(text, profile) if which == "first" else second_answer(text, profile)


def _judge(record: dict, which: str, profile: Profile) -> None:
    chosen, score = judge(record, which, profile)
    record[ANSWERS[which]] = chosen.boxed_text(answer_text(record["text"], which, profile))
    record[f"read_{which}"] = score.prediction
    record[f"iou_{which}"] = score.iou
    record[f"score_{which}"] = float(score) + (score.iou if chosen.problem_type == "gqa" else 0.0)


def _grade(asked: Sequence[tuple[dict, str]], which: str, pool: RewardPool, profile: Profile) -> None:
    items = [(text, record["truth"], record["problem_type"]) for record, text in asked]
    for (record, text), score in zip(asked, pool.grade_many(items, profile=profile)):
        record[f"score_{which}"] = score
        record[f"iou_{which}"] = _iou(text, record, score, pool, profile)


def _iou(text: str, record: Record, score: float, pool: RewardPool, profile: Profile) -> float | None:
    if record["problem_type"] == "iou":
        return score
    if record["problem_type"] != "gqa":
        return None
    truth = record["truth"].get("segment") if isinstance(record["truth"], Mapping) else None
    return pool.grade_many([(text.split(SEPARATOR)[-1], truth, "iou")], profile=profile)[0]
