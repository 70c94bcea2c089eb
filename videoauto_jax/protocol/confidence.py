r"""Confidence in the first answer, on the host, in two conventions.

* `measured`: what the gate computes while decoding: exp(mean log p) over the tokens that hold bytes of the (normalised)
  first answer, known as soon as the first box is closed.
* `paper`: what upstream's evaluation computes. It wants two boxes, takes the first place in the decoded text at which
  the normalised answer occurs, and guesses the token span by encoding the text before it anew; for several shapes of
  answer that is the wrong span (see docs/confidence.md).
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from videoauto_jax.errors import UsageError
from videoauto_jax.protocol.automaton import Automaton, compile_automaton
from videoauto_jax.protocol.grammar import is_fallback
from videoauto_jax.protocol.reader import Mark

UNDEFINED = -1.0
CONVENTIONS = ("measured", "paper")

_MVP_PREFIX = r"\boxed{Answer:"
# Possessive: the braces alone decide what matches, so an unclosed box fails in one pass.
_PLAIN = r"[^{}]*+"
_NESTED = rf"{_PLAIN}(?:\{{{_PLAIN}\}}{_PLAIN})*+"
_BOX = re.compile(rf"\\boxed\{{({_PLAIN}(?:\{{{_NESTED}\}}{_PLAIN})*+)\}}")
_CHOICES = tuple(
    re.compile(rf"\s*{pattern}")
    for pattern in (r"[(\[{]\s*([A-Za-z])\s*[)\]}]", r"([A-Za-z])\s*[.)/:;-]", r"([A-Za-z])\s*\Z")
)


def first_answer_confidence(
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    tokenizer: Any,
    convention: str = "measured",
    task: str = "",
) -> float:
    """Confidence in the first answer of one response, in [0, 1]; -1 where it is undefined.

    Args:
        token_ids: the generated tokens [T], with or without the end of the sequence.
        log_probs: their log-probs [T], natural logarithm.
        tokenizer: the byte-level BPE tokenizer (transformers) they were written with.
        convention: "measured" or "paper".
        task: name of the evaluation task. For `mvp_` tasks the prompt ends with `\\boxed{Answer:`, which is not part of
            the tokens.

    Raises:
        UsageError: unknown convention, lengths that differ, a negative id.
        ModelError: the tokenizer is not byte-level BPE (convention "measured").
    """
    ids, values = np.asarray(token_ids, np.int64).reshape(-1), np.asarray(log_probs, np.float64).reshape(-1)
    if len(ids) != len(values):
        raise UsageError(f"{len(ids)} token ids but {len(values)} log-probs", fix="Give one log-prob for each token")
    if (ids < 0).any():
        raise UsageError(f"token ids hold {ids.min()}", fix="Cut the padding off: ids are 0 or more")
    if convention not in CONVENTIONS:
        raise UsageError(f"unknown confidence convention {convention!r}", fix=f"Use one of {', '.join(CONVENTIONS)}")
    if convention == "paper":
        return _paper(ids.tolist(), values, tokenizer, task)
    automaton = compile_automaton(tokenizer)
    indices = answer_tokens(automaton, ids, automaton.start_inside if _is_mvp(task) else automaton.start)
    return _exp_mean(values[indices])


def answer_tokens(automaton: Automaton, token_ids: Sequence[int], start: int = 0) -> list[int]:
    """Indices of the tokens that the measured confidence averages; empty where it is undefined."""
    content, letter = [], []
    for index, (marks, _) in enumerate(replay(automaton, token_ids, start)):
        content += [index] * bool(marks & Mark.ANSWER)
        letter += [index] * bool(marks & Mark.LETTER)
        if marks & Mark.CLOSES_FIRST:
            return [] if marks & Mark.FALLBACK else letter if marks & Mark.CHOICE else content
    return []


def replay(automaton: Automaton, token_ids: Sequence[int], start: int = 0) -> list[tuple[Mark, int]]:
    """Take the tokens one by one from `start`: what each did, and the state after it."""
    steps, state = [], start
    for token in token_ids:
        column = automaton.token_class[token] if token < len(automaton.token_class) else automaton.foreign_class
        marks, state = Mark(int(automaton.class_marks[state, column])), int(automaton.class_next[state, column])
        steps.append((marks, state))
    return steps


def paper_span(token_ids: Sequence[int], tokenizer: Any, task: str = "") -> tuple[int, int] | None:
    """The token span that upstream's search takes for the first answer, or None.

    For `mvp_` tasks the indices count the tokens of `\\boxed{Answer:` that upstream puts before the response.
    """
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    length = len(token_ids)
    if _is_mvp(task):
        text, length = _MVP_PREFIX + text, length + _encoded_length(tokenizer, _MVP_PREFIX)
    first = first_boxed(text)
    if first is None or is_fallback(first[0]):
        return None
    answer = normalize_answer(first[0])
    spaced = answer if answer.startswith(" ") else " " + answer
    for variant in (answer, answer.strip(), answer.lstrip(), spaced):
        if variant and variant in text:
            start = _encoded_length(tokenizer, text[: text.find(variant)])
            end = start + _encoded_length(tokenizer, variant)
            return (start, end) if end <= length else None
    return None


def first_boxed(text: str) -> tuple[str, int, int] | None:
    r"""(content, start, end) of the first `\boxed{…}` with at most two nested levels of braces.

    None unless the text holds at least two such boxes: upstream measures complete answers only.
    """
    boxes = _BOX.finditer(text)
    first, second = next(boxes, None), next(boxes, None)
    return None if second is None else (first[1], *first.span(1))


def normalize_answer(text: str) -> str:
    """The letter of a choice: `(A) cat`, `A. cat`, ` A ` give `A`; anything else is returned unchanged."""
    matches = (choice.match(text) for choice in _CHOICES)
    return next((match[1] for match in matches if match), text)


def _paper(ids: list[int], log_probs: np.ndarray, tokenizer: Any, task: str) -> float:
    span = paper_span(ids, tokenizer, task)
    if span is None:
        return UNDEFINED
    if not _is_mvp(task):
        return _exp_mean(log_probs[slice(*span)])
    prefix = np.zeros(_encoded_length(tokenizer, _MVP_PREFIX))
    return _exp_mean(np.concatenate([prefix, log_probs])[slice(*span)][-1:])


def _exp_mean(log_probs: np.ndarray) -> float:
    return math.exp(log_probs.mean()) if len(log_probs) else UNDEFINED


def _is_mvp(task: str) -> bool:
    return task.startswith("mvp_")


def _encoded_length(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))
