"""Question-answering sets about videos. All are scored by exact match of a letter, some of VideoR1 by value."""

import os
import re
import string
from collections.abc import Iterable, Sequence

from videoauto_jax.data.annotations import Record, Sample, is_number
from videoauto_jax.data.datasets.registry import dataset

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SEGMENTED_TASKS = ("action_sequence", "action_localization")
_VIDEO_R1_TYPES = {"multiple choice": "exact_match", "numerical": "math"}


@dataset("VideoR1")
def video_r1(record: Record) -> Sample | None:
    """Videos and images; other types than multiple choice and numerical, and solutions without a tag, are left out."""
    kind = _VIDEO_R1_TYPES.get(record.text("problem_type"))
    if kind is None or (answer := tagged_answer(record.text("solution"))) is None:
        return None
    question = record.text("problem")
    if kind == "exact_match":
        question += "Options:\n" + "".join(option + "\n" for option in record.texts("options"))
    return record.sample(question, answer, kind, _video_r1_visual(record))


@dataset("LongVideoReason")
def long_video_reason(record: Record) -> Sample:
    """The options are part of the problem's text. A missing answer tag leaves the answer None."""
    if record.text("data_type") != "video":
        raise record.wrong("data_type", "'video'")
    answer = tagged_answer(record.text("answer"))
    return record.sample(record.text("problem"), answer, "exact_match", record.video(record.text("videos")))


@dataset("TVBench")
def tvbench(record: Record) -> Sample:
    """One file per task; a task's videos lie in the folder of its name, and two tasks cut segments."""
    candidates, texts, answer = record["candidates"], option_texts(record, "candidates"), record["answer"]
    if answer not in candidates:
        raise record.wrong("answer", "one of the candidates")
    question = f"Question: {record.text('question')}\nOptions:\n{lettered(texts)}\n"
    segment = (record["start"], record["end"]) if record.group in _SEGMENTED_TASKS else ()
    video = record.video(os.path.join(record.group, record.text("video")), *segment)
    return record.sample(question, string.ascii_uppercase[candidates.index(answer)], "exact_match", video)


@dataset("STI-Bench")
def sti_bench(record: Record) -> Sample:
    """The whole video is shown; the question names the seconds that matter."""
    candidates = record["Candidates"]
    if not isinstance(candidates, dict):
        raise record.wrong("Candidates", "an object from letters to texts")
    options = "\n".join(f"({letter}) {text}" for letter, text in candidates.items())
    span = f"From {record['time_start']} s to {record['time_end']} s."
    question = f"{span} {record.text('Question')}\n{options}"
    return record.sample(question, record.text("Answer"), "exact_match", record.video(record.text("Video")))


@dataset("MMR-VBench")
def mmr_vbench(record: Record) -> Sample:
    """Options come as `(A) text`, some of them empty."""
    correct = record.text("correctAnswer")
    if len(correct) < 2:
        raise record.wrong("correctAnswer", "a letter in parentheses")
    options = [f"{option[1:2]}.{option[3:]}" for option in record.texts("options") if option]
    question = f"{record.text('question')}\nOptions:\n" + "\n".join(options)
    return record.sample(question, correct[1], "exact_match", record.video(record.text("video")))


@dataset("CG-Bench")
def cg_bench(record: Record) -> Sample:
    """Videos are named by identifier."""
    question = f"{record.text('question')}\nOptions:\n{lettered(option_texts(record, 'choices'))}"
    video = record.video(f"filtered_videos/{record.text('video_uid')}.mp4")
    return record.sample(question, record.text("right_answer"), "exact_match", video)


def tagged_answer(text: str) -> str | None:
    """Trimmed content of the first `<answer>` tag, None if there is none."""
    found = _ANSWER.search(text)
    return found.group(1).strip() if found else None


def option_texts(record: Record, field: str) -> list[str]:
    """A field that lists the texts of options, one for each letter at most; a number stands for its digits."""
    found = record[field]
    if not isinstance(found, list) or not all(isinstance(item, str) or is_number(item) for item in found):
        raise record.wrong(field, "a list of strings or numbers")
    if len(found) > len(string.ascii_uppercase):
        raise record.wrong(field, f"a list of at most {len(string.ascii_uppercase)} options")
    return [str(item) for item in found]


def lettered(options: Iterable[str], form: str = "{}. {}") -> str:
    """One option a line, with its letter."""
    return "\n".join(form.format(letter, option) for letter, option in zip(string.ascii_uppercase, options))


def letter_of(answer: object, options: Sequence[str]) -> object:
    """The letter of the option whose text the answer is; any other answer as it is."""
    letters = [letter for letter, option in zip(string.ascii_uppercase, options) if option == answer]
    return letters[0] if len(letters) == 1 else answer


def _video_r1_visual(record: Record) -> dict:
    path = record.text("path")
    if record.text("data_type") == "video":
        return record.video(path)
    if record.text("data_type") == "image":
        part = record.image(path)
        return part | {"image": os.path.normpath(part["image"])}  # as upstream, which does so in this set only
    raise record.wrong("data_type", "'video' or 'image'")
