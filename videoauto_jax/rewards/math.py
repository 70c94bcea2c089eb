"""Mathematical equality with math-verify (`math`).

Nothing here limits time: a hostile expression can keep sympy busy for ever. `RewardPool` runs this grader in processes
it can kill. math-verify's own limits stay off, as they need the main thread.
"""

import functools
import logging
import re
from decimal import Decimal
from numbers import Number

from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards.choice import grade_choice

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed\b")
_LATEX = re.compile(r"\\|\^|^\s*[(\[{].*,.*[)\]}]\s*$", re.DOTALL)
_TEXT_GROUP = re.compile(r"\\(?:text|mbox|mathrm|mathbf|mathit|operatorname)[a-z]*\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3}")


def grade_math(prediction: str, answer: object, profile: Profile) -> float:
    """1 if math-verify finds the prediction equal to the answer, else 0.

    `paper` hands both texts to math-verify as they are, so LaTeX without `$` mostly counts as wrong and an answer that
    is a number always does. `strict` reads numbers and bare LaTeX; identical texts and option letters are equal too.
    """
    if profile == "paper":
        return float(isinstance(answer, str) and _paper_equal(prediction, answer))
    if answer is None:
        return 0.0
    answer = _as_text(answer)
    if grade_choice(prediction, answer, profile):
        return 1.0
    return float(_verify(parse_math(answer), parse_math(prediction)))


def parse_math(text: str) -> list:
    """What math-verify reads in a text (`[expression, its source]` or `[]`), with bare LaTeX taken for LaTeX.

    Text is LaTeX if it holds a command or a power or is a bracketed list, or if nothing else was found in it; prose,
    three letters in a row outside commands, never is.
    """
    if _DELIMITED.search(text):
        return _parse(text)
    is_prose = _WORD.search(_COMMAND.sub(" ", _TEXT_GROUP.sub(" ", text))) is not None
    wrapped = f"${' '.join(text.split()).rstrip('.')}$"
    if not is_prose and _LATEX.search(text):
        found = _parse(wrapped)
        if any(not isinstance(item, str) for item in found):
            return found
    found = _parse(text)
    return found if found or is_prose or not text.strip() else _parse(wrapped)


def _paper_equal(prediction: str, answer: str) -> bool:
    """math-verify 0.8.0's verdict: unlike 0.9 it does not take 50 % for 50."""
    return _verify(_evaluate_percentages(_parse(answer)), _evaluate_percentages(_parse(prediction)))


def _evaluate_percentages(found: list) -> list:
    """0.9 marks a percentage by an unevaluated 1/100, which its comparison then strips from integers."""
    from sympy import Rational, UnevaluatedExpr

    hundredth = UnevaluatedExpr(Rational(1, 100))
    return [
        item.subs(hundredth, Rational(1, 100)) if not isinstance(item, str) and item.has(hundredth) else item
        for item in found
    ]


def _as_text(answer: object) -> str:
    if isinstance(answer, float):
        return format(Decimal(repr(float(answer))), "f")
    return str(answer.item() if hasattr(answer, "item") else answer) if isinstance(answer, Number) else str(answer)


def _parse(text: str) -> list:
    return _math_verify().parse(text, parsing_timeout=None)


def _verify(answer: list, prediction: list) -> bool:
    return _math_verify().verify(answer, prediction, timeout_seconds=None)


@functools.cache
def _math_verify():
    """The library, imported when first needed: sympy and the LaTeX grammar take half a second."""
    import math_verify

    # It warns that its time limits are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
