"""The answer-twice grammar as a table over the tokens of one tokenizer.

Running the byte DFA over the bytes of a token gives a function from states to states, so tokens that are merged across
fields (`}<`, `]}`, `{(`, `>\\`) need no special care. Most tokens act alike on every state: they share a *class*, and
the tables have one column per class instead of one per token (a few MB instead of several hundred).
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int16, Int32, UInt8

from videoauto_jax.protocol.dfa import ByteDFA, build_dfa
from videoauto_jax.protocol.reader import END, FOREIGN, SYMBOLS, Field
from videoauto_jax.protocol.token_bytes import token_symbols

NEVER = np.iinfo(np.int16).max
"""More tokens than any response needs."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_class", "class_next", "class_marks", "class_allowed"]
    + ["field", "valid", "needed", "first_closed", "done", "fallback", "choice"],
    meta_fields=["start", "start_inside", "foreign_class"],
)
@dataclass(frozen=True, eq=False)
class Automaton:
    """Token-level tables: S states, V tokens, C classes of tokens. A pytree, to be passed to jitted functions.

    Attributes:
        token_class: the class of every token.
        class_next: the state after a token of the class, taken in a state.
        class_marks: what that token does: `Mark` bits.
        class_allowed: whether the response can still become well-formed after it (every token is allowed in a state
            from which it no longer can). The end of the sequence is allowed only after the second box.
        field: `Field` of the next byte.
        valid: the response can still become (in a `done` state: is) well-formed.
        needed: fewest further tokens that make the response well-formed as it stands; `NEVER` where none do.
        first_closed: the first answer has been closed.
        done: the end of the sequence has been taken.
        fallback: inside the first box, which starts with the fallback phrase.
        choice: inside the first box; closed here, its answer would be a choice letter.
        start: the state before the first token.
        start_inside: the state for prompts that end inside the first box (the `mvp_` tasks' `\\boxed{Answer:`).
        foreign_class: the class of special tokens and of ids beyond the vocabulary: they make a response malformed.
    """

    token_class: Int32[np.ndarray, " V"]
    class_next: Int16[np.ndarray, "S C"]
    class_marks: UInt8[np.ndarray, "S C"]
    class_allowed: Bool[np.ndarray, "S C"]
    field: UInt8[np.ndarray, " S"]
    valid: Bool[np.ndarray, " S"]
    needed: Int16[np.ndarray, " S"]
    first_closed: Bool[np.ndarray, " S"]
    done: Bool[np.ndarray, " S"]
    fallback: Bool[np.ndarray, " S"]
    choice: Bool[np.ndarray, " S"]
    start: int
    start_inside: int
    foreign_class: int

    @property
    def next_state(self) -> Int16[np.ndarray, "S V"]:
        """`class_next` spread over the vocabulary, on the host (hundreds of MB for a real one)."""
        return self.class_next[:, self.token_class]

    @property
    def flags(self) -> UInt8[np.ndarray, "S V"]:
        """`class_marks` spread over the vocabulary, on the host."""
        return self.class_marks[:, self.token_class]

    @property
    def allowed(self) -> Bool[np.ndarray, "S V"]:
        """`class_allowed` spread over the vocabulary, on the host."""
        return self.class_allowed[:, self.token_class]


_compiled: "weakref.WeakKeyDictionary[Any, dict[tuple, Automaton]]" = weakref.WeakKeyDictionary()


def compile_automaton(tokenizer: Any, vocab_size: int | None = None, stop_ids: Iterable[int] = ()) -> Automaton:
    """The automaton of a tokenizer; compiled once per tokenizer and arguments.

    Args:
        tokenizer: a byte-level BPE tokenizer of transformers.
        vocab_size: rows of the LM head, where they are more than the tokenizer's ids (the surplus is never allowed).
        stop_ids: ids that end a response, besides the tokenizer's eos and pad, `<|im_end|>` and `<|endoftext|>`.

    Raises:
        ModelError: the tokenizer is not byte-level BPE, or an id is outside the vocabulary.
    """
    known = _compiled.setdefault(tokenizer, {})
    key = (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, vocab_size, tuple(sorted(stop_ids)))
    if key not in known:
        known[key] = _compile(token_symbols(tokenizer, vocab_size, key[-1]), build_dfa())
    return known[key]


def _compile(tokens: list[tuple[int, ...]], dfa: ByteDFA) -> Automaton:
    token_class, class_next, class_marks = _compose([*tokens, (FOREIGN,)], dfa)
    return Automaton(
        token_class=token_class[:-1],
        class_next=class_next,
        class_marks=class_marks,
        class_allowed=dfa.valid[class_next] | ~dfa.valid[:, None],
        field=dfa.field,
        valid=dfa.valid,
        needed=_needed(class_next, dfa.valid[dfa.next_state[:, END]]),
        first_closed=dfa.closed,
        done=dfa.field == Field.FINISHED,
        fallback=dfa.fallback,
        choice=dfa.choice,
        start=0,
        start_inside=dfa.inside_first,
        foreign_class=int(token_class[-1]),
    )


def _needed(class_next: np.ndarray, complete: np.ndarray) -> np.ndarray:
    """The fewest tokens from every state to a complete one: all states a token further at a time."""
    needed = np.where(complete, 0, NEVER).astype(np.int16)
    while True:
        nearest = needed[class_next].min(axis=1)
        further = np.minimum(needed, np.where(nearest < NEVER, nearest + 1, NEVER))
        if (further == needed).all():
            return needed
        needed = further


def _compose(tokens: list[tuple[int, ...]], dfa: ByteDFA) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token_class [V], next state [S, C], marks [S, C]): all tokens a symbol longer at a time, alike ones together."""
    lengths = np.array([len(token) for token in tokens])
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    symbol_class, table = _symbol_classes(dfa)
    symbols = symbol_class[np.fromiter(chain.from_iterable(tokens), np.int64, lengths.sum())]
    maps = _StateMaps(len(dfa.field))
    token_class = np.zeros(len(tokens), np.int64)
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        pairs = token_class[longer] * SYMBOLS + symbols[offsets[longer] + position]
        distinct, which = np.unique(pairs, return_inverse=True)
        token_class[longer] = maps.extend(*np.divmod(distinct, SYMBOLS), table)[which]
    used, token_class = np.unique(token_class, return_inverse=True)
    rows = maps.rows()[used]
    return token_class.astype(np.int32), np.ascontiguousarray(rows["state"].T), np.ascontiguousarray(rows["marks"].T)


_ENTRY = np.dtype([("state", np.int16), ("marks", np.uint8)])


class _StateMaps:
    """The distinct functions state -> (state, marks) met so far; number 0 is the identity."""

    def __init__(self, states: int):
        self._rows = [np.zeros(states, _ENTRY)]
        self._rows[0]["state"] = np.arange(states)
        self._number = {self._rows[0].tobytes(): 0}

    def rows(self) -> np.ndarray:
        return np.stack(self._rows)

    def extend(self, prefix: np.ndarray, symbol: np.ndarray, table: np.ndarray) -> np.ndarray:
        """The numbers of `prefix` followed by `symbol`."""
        return np.array([self._intern(self._rows[p], table[s]) for p, s in zip(prefix, symbol)])

    def _intern(self, row: np.ndarray, then: np.ndarray) -> int:
        result = then[row["state"]]
        result["marks"] |= row["marks"]
        number = self._number.setdefault(result.tobytes(), len(self._rows))
        if number == len(self._rows):
            self._rows.append(result)
        return number


def _symbol_classes(dfa: ByteDFA) -> tuple[np.ndarray, np.ndarray]:
    """The class of every symbol, and the function of every class as a row."""
    table = np.empty((SYMBOLS, len(dfa.field)), _ENTRY)
    table["state"], table["marks"] = dfa.next_state.T, dfa.marks.T
    number: dict[bytes, int] = {}
    symbol_class = np.array([number.setdefault(row.tobytes(), len(number)) for row in table])
    return symbol_class, table[np.unique(symbol_class, return_index=True)[1]]
