"""Open questions of MMMU: numbers and short texts somewhere in what was said."""

import re

from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards.choice import normalise

_SIGNS = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ", "in total ", "total ",
    "identify ", "recognize ", "calculated as ", "counted as ", "measured as ", "observed as ", "concluded as ",
    "found to be ", "equals ", "determined to be ", "number of ", "value is ", "adds up to ", "have ", "has ",
)  # fmt: skip
_BLANK = {":", ",", ".", "!", "?", ";", "'"}
_GROUPS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_POWER = re.compile(rf"-?\d+(?:\.\d+)?{(_EXPONENT := '[eE][+-]?[0-9]+')}")
_SIMPLE = re.compile(rf"-?(?:\d*\.\d+|\d+\b)(?!{_EXPONENT}|[,\d])")
_NUMBERS = (_GROUPS, _POWER, _SIMPLE)


def open_answers(text: str) -> list[float | str]:
    """Everything in a text that may be its answer, as published: key phrases, and every number, to two decimals.

    A phrase of one character stands for itself beside a space.
    """
    phrases = _key_phrases(text)
    found = phrases + [number for phrase in phrases for form in _NUMBERS for number in form.findall(phrase)]
    values: dict[float | str, None] = {}
    for one in found:
        values.update(dict.fromkeys(_values(one)))
    return list(values)


def says_open_answer(text: str, answer: str, profile: Profile = "paper") -> bool:
    """Whether a text says the answer: as a number, or, if the answer is a text, with it inside.

    `strict` wants the whole text to be the answer, or its only number.
    """
    if profile == "strict":
        return _says_strictly(text, answer)
    said = open_answers(text)
    texts = [one for one in said if isinstance(one, str)]
    for value in _values(answer):
        if (value in said) if isinstance(value, float) else any(value in one for one in texts):
            return True
    return False


def _says_strictly(text: str, answer: str) -> bool:
    text = re.sub(r"\\text\s*\{([^{}]*)\}|\$", r"\1", text)
    number, numbers = _number(answer), re.findall(r"-?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", text)
    if number is None:
        return normalise(text) == normalise(answer)
    return len(numbers) == 1 and (found := _number(numbers[0])) is not None and round(found, 2) == round(number, 2)


def _key_phrases(text: str) -> list[str]:
    """What follows the last sign of an answer in every line, the shortest such; the whole text without signs."""
    lines, phrases = text.strip().strip(".").lower().split("\n"), []
    for place, line in enumerate(lines):
        signs = (*_SIGNS, "=") if place == len(lines) - 1 else _SIGNS
        tails = [line.split(sign)[-1].strip() for sign in signs if sign in line]
        if tails and (shortest := min(tails, key=len)) and shortest not in _BLANK:
            phrases.append(shortest)
    return phrases or [text.strip().strip(".").lower()]


def _values(text: str) -> list[float | str]:
    text = text.strip()
    number = _number(text)
    if number is not None:
        return [round(number, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
