r"""Reading a response `\boxed{a1}<think>r</think>\boxed{a2}` byte by byte.

A `TextState` says which field the next byte falls in and whether the text can still become a well-formed response. The
rules are those of the `strict` profile of grammar.py, read from left to right:

* Whitespace (as `str.isspace`, in UTF-8) may stand before, between and after the fields; nothing else may.
* Braces inside a box balance, up to `MAX_DEPTH` levels; one more makes the response malformed, and where that box ends
  is not known: it is not closed.
* The thought holds at least one character that is not whitespace; `<think>` and `</think>` occur once each.
* A malformed response is read on: the first answer is the first box before the first tag, the last answer the first box
  after the last `</think>`. A tag inside the first box gives that box up.

The first answer is measured as upstream's confidence normalises it: a leading `(A)`, `A.`-like or lone letter stands
for the whole content (`Mark.CHOICE`); content that starts with the fallback phrase carries no answer (`Mark.FALLBACK`).
"""

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import NamedTuple

from videoauto_jax.protocol import grammar
from videoauto_jax.protocol.prompts import FALLBACK_PREFIX

BOX, OPEN, CLOSE = (text.encode() for text in (grammar.BOX, grammar.OPEN, grammar.CLOSE))
PHRASE = FALLBACK_PREFIX.encode()
MAX_DEPTH = 6

# Two symbols follow the 256 bytes: the end of the sequence, and a token that no response may hold (`<|image_pad|>`).
END, FOREIGN = 256, 257
SYMBOLS = 258


class Field(IntEnum):
    """Where the next byte of the response falls."""

    BEFORE_FIRST = 0
    FIRST = 1
    BEFORE_THOUGHT = 2
    THOUGHT = 3
    BEFORE_SECOND = 4
    SECOND = 5
    AFTER_SECOND = 6
    FINISHED = 7


class Mark(IntFlag):
    """What reading a symbol (or a whole token) does. CHOICE and FALLBACK come only together with CLOSES_FIRST."""

    ANSWER = 1  # holds content of the first box
    LETTER = 2  # holds the letter that stands for the content, should it prove to be a choice
    CLOSES_FIRST = 4
    CHOICE = 8  # the first answer is its letter
    FALLBACK = 16  # the first answer is the fallback phrase
    OPENS_THOUGHT = 32
    CLOSES_THOUGHT = 64
    CLOSES_SECOND = 128


class Head(IntEnum):
    """What the beginning of the first answer (or of the thought: LEAD or WHOLE) has been so far."""

    LEAD = 0  # whitespace only
    BRACKET = 1  # `(`
    BRACKET_LETTER = 2  # `(A`
    LETTER = 3  # `A`
    PHRASE = 4  # `Let's an`
    WHOLE = 5  # anything else: the content stands for itself
    CHOICE = 6  # `(A)`, `A.`
    FALLBACK = 7  # `Let's analyze`


class TextState(NamedTuple):
    """All that the text read so far means for the rest of it."""

    field: Field = Field.BEFORE_FIRST
    valid: bool = True  # may still become well-formed
    closed: bool = False  # the first answer has been closed
    depth: int = 0  # braces open inside the box; once more than MAX_DEPTH, no longer counted
    head: Head = Head.LEAD
    matched: int = 0  # bytes of the fallback phrase
    space: bytes = b""  # bytes of an unfinished whitespace character
    tag: bytes = b""  # bytes of an unfinished BOX, OPEN or CLOSE


Step = tuple[TextState, Mark]

_SPACES = {chr(code).encode() for code in range(0x3001) if chr(code).isspace()}
_SPACE_STARTS = {space[:size] for space in _SPACES for size in range(1, len(space))}
LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# The bytes that the rules tell from other letters and from other bytes.
TELLING = BOX + OPEN + CLOSE + PHRASE + b"()[]{}./:;-" + b"".join(_SPACES)

_EXPECTED = {Field.BEFORE_FIRST: BOX, Field.BEFORE_THOUGHT: OPEN, Field.BEFORE_SECOND: BOX, Field.AFTER_SECOND: b""}
_SOUGHT = {
    Field.BEFORE_FIRST: (BOX, OPEN, CLOSE),
    Field.BEFORE_THOUGHT: (OPEN, CLOSE),
    Field.BEFORE_SECOND: (BOX, CLOSE),
    Field.AFTER_SECOND: (CLOSE,),
}


def step(state: TextState, symbol: int) -> Step:
    """Read one symbol: a byte, `END` or `FOREIGN`."""
    if state.field is Field.FINISHED:
        return state, Mark(0)
    if symbol == END:
        complete = state.valid and state.field is Field.AFTER_SECOND and not state.space
        return TextState(Field.FINISHED, valid=complete, closed=state.closed), Mark(0)
    if symbol == FOREIGN:
        return state._replace(valid=False), Mark(0)
    return _STEPS[state.field](state, bytes([symbol]))


def _gap(state: TextState, byte: bytes) -> Step:
    tag, found = _search(_SOUGHT[state.field], state.tag, byte)
    fits, space = _space_then(_EXPECTED[state.field], state, byte)
    state = state._replace(valid=state.valid and fits, space=space, tag=tag)
    if found == OPEN:
        return _enter(Field.THOUGHT, state), Mark.OPENS_THOUGHT
    if found == CLOSE:
        return _enter(Field.BEFORE_SECOND, state), Mark.CLOSES_THOUGHT
    if found == BOX:
        return _enter(Field.FIRST if state.field is Field.BEFORE_FIRST else Field.SECOND, state), Mark(0)
    return state, Mark(0)


def _thought(state: TextState, byte: bytes) -> Step:
    tag, found = _search((OPEN, CLOSE), state.tag, byte)
    if found == CLOSE:
        return _enter(Field.BEFORE_SECOND, state, valid=state.valid and state.head is Head.WHOLE), Mark.CLOSES_THOUGHT
    blank, space = _space_then(CLOSE, state, byte)
    head = Head.LEAD if blank and state.head is Head.LEAD else Head.WHOLE
    return state._replace(valid=state.valid and found is None, head=head, space=space, tag=tag), Mark(0)


def _first(state: TextState, byte: bytes) -> Step:
    if byte == b"}" and state.depth == 0:
        marks = Mark.CLOSES_FIRST
        if state.head is Head.FALLBACK:
            marks |= Mark.FALLBACK
        if is_choice(state):
            marks |= Mark.CHOICE
        return _enter(Field.BEFORE_THOUGHT, state, closed=True), marks
    tag, found = _search((OPEN, CLOSE), state.tag, byte)
    if found == OPEN:
        return _enter(Field.THOUGHT, state, valid=False), Mark.OPENS_THOUGHT
    if found == CLOSE:
        return _enter(Field.BEFORE_SECOND, state, valid=False), Mark.CLOSES_THOUGHT
    read = _read_head(_count_braces(state, byte), byte)._replace(tag=tag)
    begun = state.head in (Head.LEAD, Head.BRACKET) and read.head in (Head.LETTER, Head.BRACKET_LETTER)
    return read, Mark.ANSWER | (Mark.LETTER if begun else 0)


def _second(state: TextState, byte: bytes) -> Step:
    if byte == b"}" and state.depth == 0:
        return _enter(Field.AFTER_SECOND, state), Mark.CLOSES_SECOND
    tag, found = _search((OPEN, CLOSE), state.tag, byte)
    if found == CLOSE:
        return _enter(Field.BEFORE_SECOND, state, valid=False), Mark.CLOSES_THOUGHT
    read = _count_braces(state, byte)
    return read._replace(valid=read.valid and found is None, tag=tag), Mark(0)


_STEPS: dict[Field, Callable[[TextState, bytes], Step]] = {
    **dict.fromkeys(_EXPECTED, _gap),
    Field.THOUGHT: _thought,
    Field.FIRST: _first,
    Field.SECOND: _second,
}


def is_choice(state: TextState) -> bool:
    """Whether the first answer, closed here, is a choice letter."""
    return state.head is Head.CHOICE or (state.head is Head.LETTER and not state.space)


def _enter(field: Field, state: TextState, **changes: bool) -> TextState:
    return TextState(field, valid=state.valid, closed=state.closed)._replace(**changes)


def _count_braces(state: TextState, byte: bytes) -> TextState:
    if state.depth > MAX_DEPTH:
        return state
    depth = state.depth + {b"{": 1, b"}": -1}.get(byte, 0)
    return state._replace(depth=depth, valid=state.valid and depth <= MAX_DEPTH)


def _read_head(state: TextState, byte: bytes) -> TextState:
    """Follow the beginning of the first answer, until it is known what stands for it."""
    if state.head >= Head.WHOLE:
        return state
    if state.matched and PHRASE[state.matched :].startswith(byte):
        matched = state.matched + 1
        done = matched == len(PHRASE)
        return state._replace(head=Head.FALLBACK if done else Head.PHRASE, matched=0 if done else matched)
    space = _space(state.space, byte)
    if space is not None and state.head is not Head.PHRASE:
        return state._replace(matched=0, space=space)
    head = Head.WHOLE if state.space else _next_head(state.head, byte)
    matched = 1 if head is Head.LETTER and PHRASE.startswith(byte) else 0
    return state._replace(head=head, matched=matched, space=b"")


def _next_head(head: Head, byte: bytes) -> Head:
    if head is Head.LEAD and byte in (b"(", b"[", b"{"):
        return Head.BRACKET
    if head is Head.LEAD and byte[0] in LETTERS:
        return Head.LETTER
    if head is Head.BRACKET and byte[0] in LETTERS:
        return Head.BRACKET_LETTER
    closers = {Head.BRACKET_LETTER: b")]}", Head.LETTER: b".)/:;-"}.get(head, b"")
    return Head.CHOICE if byte in closers else Head.WHOLE


def _space(begun: bytes, byte: bytes) -> bytes | None:
    """What is unfinished of a whitespace character after one more byte (b"" when complete); None if it is none."""
    read = begun + byte
    if read in _SPACES:
        return b""
    return read if read in _SPACE_STARTS else None


def _space_then(expected: bytes, state: TextState, byte: bytes) -> tuple[bool, bytes]:
    """Whether the byte continues `whitespace* expected`, and the unfinished whitespace character."""
    space = None if state.tag else _space(state.space, byte)
    if space is not None:
        return True, space
    return not state.space and expected.startswith(state.tag + byte), b""


def _search(patterns: tuple[bytes, ...], begun: bytes, byte: bytes) -> tuple[bytes, bytes | None]:
    """Knuth-Morris-Pratt over several patterns: (the longest unfinished match, the pattern just completed)."""
    read = begun + byte
    while read:
        if read in patterns:
            return b"", read
        if any(pattern.startswith(read) for pattern in patterns):
            return read, None
        read = read[1:]
    return b"", None
