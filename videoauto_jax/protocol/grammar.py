r"""Reading a finished response `\boxed{a1}<think>r</think>\boxed{a2}` on the host.

Two profiles exist. `paper` reads as the published scores were made: a box holds at most one nested level of braces, and
a text without tags is its own first and second answer. `strict` balances braces at any depth, takes nothing for a
second answer before a closed thought, and wants the thought to say something. Every brace counts, escaped or not.
"""

import dataclasses
import re
from typing import Literal, NamedTuple

from videoauto_jax.errors import UsageError
from videoauto_jax.protocol.prompts import FALLBACK_PREFIX

Profile = Literal["paper", "strict"]
PROFILES = ("paper", "strict")

BOX, OPEN, CLOSE = "\\boxed{", "<think>", "</think>"


class Box(NamedTuple):
    r"""One `\boxed{content}`: `text[start:end]` is the whole of it."""

    content: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Response:
    """A parsed response.

    Attributes:
        first: content of the first box, "" where there is none or more than one.
        thought: text of the thought, up to the end of the response if it was cut off; None without `<think>`.
        second: content of the second box, "" where there is none or more than one.
        closed: the thought ends with `</think>`.
        fallback: the first answer declines to guess.
        well_formed: the whole response follows the grammar.
    """

    first: str
    thought: str | None
    second: str
    closed: bool
    fallback: bool
    well_formed: bool


def parse_response(text: str, profile: Profile = "strict") -> Response:
    """Every part of a response at once."""
    first = first_answer(text, profile)
    _, opened, rest = text.partition(OPEN)
    thought, closed, _ = rest.partition(CLOSE)
    return Response(
        first=first,
        thought=thought if opened else None,
        second=second_answer(text, profile),
        closed=bool(opened and closed),
        fallback=is_fallback(first),
        well_formed=is_well_formed(text, profile),
    )


def first_answer(text: str, profile: Profile = "strict") -> str:
    """Content of the only box before the first `<think>`, as written; "" if there is none or more than one.

    `strict` also stops at a `</think>` without its opening, so that one box is never both answers.
    """
    head = text.partition(OPEN)[0]
    if check_profile(profile) == "strict":
        head = head.partition(CLOSE)[0]
    return _only_box(head, profile)


def second_answer(text: str, profile: Profile = "strict") -> str:
    """Content of the only box after the last `</think>`, as written; "" if there is none or more than one.

    Without `</think>`, `strict` finds nothing and `paper` looks at the whole text.
    """
    _, closed, tail = text.rpartition(CLOSE)
    if check_profile(profile) == "strict" and not closed:
        return ""
    return _only_box(tail, profile)


def last_box_or_text(text: str, profile: Profile = "strict") -> str:
    """Content of the last box anywhere, or the text itself: the answer of a response with one box."""
    boxes = find_boxes(text, profile)
    return boxes[-1].content if boxes else text


def begun_response(prompt: str) -> str:
    """The beginning of a response with which a prompt's text ends, if that is inside the first box; else "".

    Upstream ends the prompts of its `mvp_` tasks so, with `\\boxed{Answer:`.
    """
    _, box, content = prompt.rpartition("|>")[2].partition(BOX)
    return "" if not box or any(mark in content for mark in ("{", "}", OPEN, CLOSE)) else box + content


def is_fallback(answer: str) -> bool:
    """Whether a first answer declines to guess (`Let's analyze…`, plain apostrophe, case as written)."""
    return answer.lstrip().startswith(FALLBACK_PREFIX)


def is_well_formed(text: str, profile: Profile = "strict") -> bool:
    """Box, thought, box, and nothing else but white space; `strict` also wants a thought that is not blank."""
    strict = check_profile(profile) == "strict"
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return False
    head, _, rest = text.partition(OPEN)
    thought, closed, tail = rest.partition(CLOSE)
    if not closed or (strict and not thought.strip()):
        return False
    return _is_one_box(head.strip(), profile) and _is_one_box(tail.strip(), profile)


def find_boxes(text: str, profile: Profile = "strict") -> list[Box]:
    """Outermost boxes from left to right. A box that is never closed, or too deep for `paper`, is passed over."""
    deepest = 1 if check_profile(profile) == "paper" else len(text)
    ends, depths = _match_braces(text)
    boxes, position = [], text.find(BOX)
    while position >= 0:
        content = position + len(BOX)
        end = ends.get(content - 1)
        if end is not None and depths[content - 1] <= deepest:
            boxes.append(Box(text[content:end], position, end + 1))
            content = end + 1
        position = text.find(BOX, content)
    return boxes


def check_profile(profile: str) -> str:
    """The profile itself.

    Raises:
        UsageError: it is neither `paper` nor `strict`.
    """
    if profile not in PROFILES:
        raise UsageError(f"unknown scoring profile {profile!r}", fix=f"Use one of: {', '.join(PROFILES)}.")
    return profile


def _match_braces(text: str) -> tuple[dict[int, int], dict[int, int]]:
    """For every opening brace that is closed: where, and how many levels it nests."""
    ends: dict[int, int] = {}
    depths: dict[int, int] = {}
    stack: list[list[int]] = []  # [position, levels nested so far]
    for brace in re.finditer("[{}]", text):
        position = brace.start()
        if brace[0] == "{":
            stack.append([position, 0])
        elif stack:
            opening, depth = stack.pop()
            ends[opening], depths[opening] = position, depth
            if stack:
                stack[-1][1] = max(stack[-1][1], depth + 1)
    return ends, depths


def _only_box(text: str, profile: Profile) -> str:
    boxes = find_boxes(text, profile)
    return boxes[0].content if len(boxes) == 1 else ""


def _is_one_box(text: str, profile: Profile) -> bool:
    boxes = find_boxes(text, profile)
    return bool(boxes) and boxes[0].start == 0 and boxes[0].end == len(text)
