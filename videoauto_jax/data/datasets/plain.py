"""The format for one's own data: every problem type, no code."""

import string
from decimal import Decimal

from videoauto_jax.data.annotations import Record, Sample, is_interval
from videoauto_jax.data.datasets.grounding import are_segments, segments
from videoauto_jax.data.datasets.registry import dataset
from videoauto_jax.data.datasets.video import letter_of, lettered, option_texts
from videoauto_jax.protocol.prompts import grounded_qa_prompt, grounding_prompt
from videoauto_jax.rewards.choice import normalise, option_letter


@dataset("Plain")
def plain(record: Record) -> Sample:
    """`question` and `answer`; optional `options`, `problem_type`, and `image` or `video` with `start` and `end`.

    Without a problem type an answer has to be matched (`exact_match`); it may be an option's letter or its text.
    `iou`: the question is the description of a segment, the answer [start, end]. `gqa`: the answer is a letter, and
    `segments` lists the [start, end] pairs that support it. The prompt that asks for the format is added.
    """
    kind = record.text("problem_type") if "problem_type" in record.data else "exact_match"
    question, visual = record.text("question"), _visual(record)
    if kind == "iou":
        if not is_interval(record["answer"]) and not are_segments(record["answer"]):
            raise record.wrong("answer", "[start, end] in seconds, or a list of them")
        return record.sample(grounding_prompt(question), record["answer"], kind, visual, grounding=True)
    texts = option_texts(record, "options") if "options" in record.data or kind == "gqa" else []
    options = lettered(texts)
    if kind == "gqa":
        answer = {"answer": record.text("answer"), "segment": segments(record, "segments")}
        return record.sample(grounded_qa_prompt(question, options), answer, kind, visual, grounding=True)
    answer = _text(record, kind)
    if options:
        answer = letter_of(answer, texts)
        _check_option(record, answer, kind)
    return record.sample(f"{question}\nOptions:\n{options}" if options else question, answer, kind, visual)


def _text(record: Record, kind: str) -> object:
    """The answer, a number as text: as published, one that is no string is never right. Own graders get it as it is."""
    answer = record["answer"]
    if kind not in ("exact_match", "math") or isinstance(answer, str):
        return answer
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise record.wrong("answer", "a string or a number")
    return format(Decimal(repr(answer)), "f")


def _check_option(record: Record, answer: object, kind: str) -> None:
    if kind == "exact_match":
        letter = (option_letter(answer) or normalise(answer)).upper()
        if letter not in list(string.ascii_uppercase[: len(record["options"])]):
            raise record.wrong("answer", "the letter or the text of one of the options")


def _visual(record: Record) -> dict | None:
    if "image" in record.data and "video" in record.data:
        raise record.wrong("image", "absent where there is a video")
    if "video" in record.data:
        return record.video(record.text("video"), record.get("start"), record.get("end"))
    return record.image(record.text("image")) if "image" in record.data else None
