"""Text and image sets: mathematics and visual reasoning."""

import functools
import re
import threading

from videoauto_jax.data.annotations import Record, Sample
from videoauto_jax.data.datasets.registry import dataset

# The content may hold braces one level deep; deeper ones do not match, as in the published filter.
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")


@dataset("DAPO-Math")
def dapo_math(record: Record) -> Sample:
    """Text only; the solution keeps its JSON type."""
    return record.sample(record.text("prompt"), record["solution"], "math")


@dataset("VIRL")
def virl(record: Record) -> Sample | None:
    """Questions about one image; those about several are left out. What math-verify cannot parse is matched exactly."""
    images = record.texts("image")
    if len(images) != 1:
        return None
    answer = boxed_content(record.text("answer"))
    kind = "math" if _parses(answer) else "exact_match"
    return record.sample(_without_marker(record.text("question")), answer, kind, record.image(images[0]))


@dataset("ThinkLite-VL-Hard")
def thinklite(record: Record) -> Sample:
    """Questions about one image; the annotation states the problem type."""
    question, image = _without_marker(record.text("problem")), record.image(record.text("image"))
    return record.sample(question, record["ground_truth"], record.text("problem_type"), image)


def boxed_content(text: str) -> str:
    r"""Content of the last `\boxed{}`; the whole text if there is none."""
    found = _BOXED.findall(text)
    return found[-1] if found else text


def _without_marker(question: str) -> str:
    return question.replace("<image>", "").strip()


@functools.lru_cache(maxsize=65536)
def _parses(answer: str) -> bool:
    from math_verify import parse

    # math-verify bounds its time with a signal, which only the main thread may set.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    return bool(parse(answer, parsing_timeout=limit))
