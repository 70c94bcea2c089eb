"""The byte reader of reader.py as tables: the minimal DFA of the answer-twice grammar."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Int16, UInt8

from videoauto_jax.protocol.reader import (
    END,
    FOREIGN,
    LETTERS,
    SYMBOLS,
    TELLING,
    Field,
    Head,
    TextState,
    is_choice,
    step,
)


@dataclass(frozen=True, eq=False)
class ByteDFA:
    """The minimal DFA over bytes, `END` and `FOREIGN`. State 0 is the start of a response.

    Attributes:
        next_state, marks: for every state and symbol, the next state and the `Mark` bits.
        inside_first: the state just after `\\boxed{` of the first answer.
        field, valid, closed, fallback, choice: of every state; see `Automaton`.
    """

    next_state: Int16[np.ndarray, "S 258"]
    marks: UInt8[np.ndarray, "S 258"]
    inside_first: int
    field: UInt8[np.ndarray, " S"]
    valid: Bool[np.ndarray, " S"]
    closed: Bool[np.ndarray, " S"]
    fallback: Bool[np.ndarray, " S"]
    choice: Bool[np.ndarray, " S"]


@cache
def build_dfa() -> ByteDFA:
    """Enumerate the reachable text states, then merge those that no continuation tells apart."""
    states, next_state, marks = _explore()
    first = [state.field is Field.FIRST for state in states]
    facts = np.array(
        [
            (s.field, s.valid, s.closed, inside and s.head is Head.FALLBACK, inside and is_choice(s))
            for s, inside in zip(states, first)
        ],
        dtype=np.uint8,
    )
    block = _merge(next_state, np.hstack([facts, marks]))
    keep = np.unique(block, return_index=True)[1]
    field, *bits = facts[keep].T
    inside = block[states.index(TextState(Field.FIRST))]
    return ByteDFA(block[next_state[keep]].astype(np.int16), marks[keep], int(inside), field, *(b > 0 for b in bits))


def _explore() -> tuple[list[TextState], np.ndarray, np.ndarray]:
    kinds, symbol_kind = _symbol_kinds()
    number, states, rows = {TextState(): 0}, [TextState()], []
    for state in states:  # grows while it is walked
        row = [step(state, symbol) for symbol in kinds]
        for after, _ in row:
            if number.setdefault(after, len(states)) == len(states):
                states.append(after)
        rows.append([(number[after], int(mark)) for after, mark in row])
    table = np.array(rows)[:, symbol_kind]
    return states, table[..., 0], table[..., 1].astype(np.uint8)


def _symbol_kinds() -> tuple[list[int], np.ndarray]:
    """One symbol of each kind, and the kind of every symbol: the grammar tells few bytes apart."""
    alone = {*TELLING, END, FOREIGN}
    names = [symbol if symbol in alone else ("letter" if symbol in LETTERS else "other") for symbol in range(SYMBOLS)]
    kinds = list(dict.fromkeys(names))
    return [names.index(kind) for kind in kinds], np.array([kinds.index(name) for name in names])


def _merge(next_state: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Moore's partition refinement: the block of every state, numbered in order of first appearance."""
    block, count = _number_rows(output)
    while True:
        block, refined = _number_rows(np.hstack([block[:, None], block[next_state]]))
        if refined == count:
            return block
        count = refined


def _number_rows(rows: np.ndarray) -> tuple[np.ndarray, int]:
    number: dict[bytes, int] = {}
    return np.array([number.setdefault(row.tobytes(), len(number)) for row in rows]), len(number)
