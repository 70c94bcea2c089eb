"""Time intervals in seconds: reading one from text, and their overlap (`iou`)."""

import math
import re
from collections.abc import Sequence

from videoauto_jax.protocol.grammar import Profile

Interval = tuple[float, float]

_NUMBER = r"\d+(?:\.\d+)?"
_INTERVAL = re.compile(
    rf"(?<![\d.])({_NUMBER})\s*(?:[,–—-]|\bto\b|\band\b)\s*({_NUMBER})(?![\d.])",
    re.IGNORECASE,
)
_SIGNED = re.compile(r"[\-–—−]\s*$")
_THOUSANDS = re.compile(r"\d{1,3},\d{3}")
_SHORTEST = 1e-9


def grade_interval(prediction: str, answer: object, profile: Profile) -> float:
    """Best IoU of the predicted interval with the answer's: `[start, end]` or a list of those.

    Raises:
        TypeError, ValueError, IndexError: the answer is neither. `strict` also reads an interval in a text.
    """
    found = parse_interval(prediction, profile)
    if found is None:
        return 0.0
    return max(interval_iou(found, truth) for truth in _answers(answer, profile))


def parse_interval(text: str | None, profile: Profile = "strict") -> Interval | None:
    """The first `start, end` in a text, in order; None if there is none.

    `,`, a dash, "to" or "and" separate the numbers. `strict` also answers None where the text can be read in more than
    one way: more or fewer than two numbers, a sign, a clock time, a thousands separator.
    """
    text = text or ""
    match = _INTERVAL.search(text)
    if match is None or (profile == "strict" and _is_ambiguous(text, match)):
        return None
    start, end = sorted((float(match[1]), float(match[2])))
    return (start, end) if math.isfinite(end) else None


def interval_iou(prediction: Sequence[float], truth: Sequence[float]) -> float:
    """Intersection over union of two intervals, each in either order. 0 for a prediction or truth without length."""
    start, end = sorted(map(float, prediction[:2]))
    true_start, true_end = sorted(map(float, truth[:2]))
    if end - start <= _SHORTEST:
        return 0.0
    overlap = max(0.0, min(end, true_end) - max(start, true_start))
    return overlap / ((end - start) + (true_end - true_start) - overlap)


def _is_ambiguous(text: str, match: re.Match) -> bool:
    first, second = match[1], match[2]
    return (
        len(re.findall(r"\d+(?:\.\d+)?", text)) != 2
        or _SIGNED.search(text[: match.start()]) is not None
        or re.search(r"\d\s*:\s*\d", text) is not None
        or _is_thousands(text, match)
        or any(len(number) > 2 and number.startswith("00") for number in (first, second))
    )


def _is_thousands(text: str, match: re.Match) -> bool:
    """`1,000` is one number; `[10,200]`, bracketed as the prompt asks, is two."""
    bracketed = re.search(r"[(\[]\s*$", text[: match.start()]) and re.match(r"\s*[)\]]", text[match.end() :])
    return _THOUSANDS.fullmatch(match[0]) is not None and not bracketed


def _answers(answer: object, profile: Profile) -> list[Sequence[float]]:
    if isinstance(answer, str):
        if profile == "paper":
            raise TypeError(f"the interval {answer!r} is a text")
        parsed = parse_interval(answer, profile)
        if parsed is None:
            raise ValueError(f"no interval in {answer!r}")
        return [parsed]
    nested = hasattr(answer[0], "__len__") and not isinstance(answer[0], str)
    return list(answer) if nested else [answer]
