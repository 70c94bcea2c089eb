"""Temporal grounding sets: find the segment, alone or together with an answer. Their prompts state their own format."""

from videoauto_jax.data.annotations import Record, Sample, is_interval
from videoauto_jax.data.datasets.registry import dataset
from videoauto_jax.protocol.prompts import grounded_qa_prompt, grounding_prompt


@dataset("Charades-STA")
@dataset("ActivityNet-TVG")
def described_segment(record: Record) -> Sample:
    """The segment that a description tells of."""
    return _localise(record, "description", "timestamps")


@dataset("TimeR1")
def time_r1(record: Record) -> Sample:
    """As Charades-STA, with other field names."""
    return _localise(record, "sentence", "timestamp")


@dataset("NeXT-GQA")
def next_gqa(record: Record) -> Sample:
    """An answer and the segments that support it; the options bring their letters."""
    answer = {"answer": record.text("answer"), "segment": segments(record, "timestamps")}
    question = grounded_qa_prompt(record.text("question"), "\n".join(record.texts("options")))
    return record.sample(question, answer, "gqa", record.video(record.text("video")), grounding=True)


def segments(record: Record, field: str) -> list:
    """A field that is a non-empty list of [start, end] pairs."""
    if not are_segments(record[field]):
        raise record.wrong(field, "a list of [start, end] pairs in seconds")
    return record[field]


def are_segments(value: object) -> bool:
    """Whether `value` is a non-empty list of pairs of finite numbers."""
    return isinstance(value, list) and bool(value) and all(map(is_interval, value))


def _localise(record: Record, text: str, segment: str) -> Sample:
    question, video = grounding_prompt(record.text(text)), record.video(record.text("video"))
    return record.sample(question, record.interval(segment), "iou", video, grounding=True)
