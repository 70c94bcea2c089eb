"""The protocol automaton on the device: fields and confidence of many branches, one token at a time.

All functions are pure, take any batch shape and run inside `jax.lax.while_loop`; the `Automaton` is an argument.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32

from videoauto_jax.protocol.automaton import NEVER, Automaton
from videoauto_jax.protocol.reader import Mark


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["state", "sum_all", "count_all", "sum_letter", "count_letter", "confidence"],
    meta_fields=[],
)
@dataclass(frozen=True)
class GateState:
    """What the gate knows of every branch.

    Attributes:
        state: state of the automaton.
        sum_all, count_all: log-probs of the tokens that hold content of the first box.
        sum_letter, count_letter: of the token that holds the letter of a choice.
        confidence: exp(mean log p) over the tokens of the normalised first answer; -1 before it is closed, where it is
            empty and where it is the fallback phrase.
    """

    state: Int32[Array, "*batch"]
    sum_all: Float32[Array, "*batch"]
    count_all: Int32[Array, "*batch"]
    sum_letter: Float32[Array, "*batch"]
    count_letter: Int32[Array, "*batch"]
    confidence: Float32[Array, "*batch"]


def init(batch_shape: tuple[int, ...], start: int | Int[Array, "*batch"] = 0) -> GateState:
    """The gate before the first token; `start` is `Automaton.start` (0) or `start_inside`."""
    return GateState(
        state=jnp.full(batch_shape, start, jnp.int32),
        sum_all=jnp.zeros(batch_shape, jnp.float32),
        count_all=jnp.zeros(batch_shape, jnp.int32),
        sum_letter=jnp.zeros(batch_shape, jnp.float32),
        count_letter=jnp.zeros(batch_shape, jnp.int32),
        confidence=jnp.full(batch_shape, -1, jnp.float32),
    )


def advance(
    automaton: Automaton,
    gate: GateState,
    token: Int[Array, "*batch"],
    log_prob: Float32[Array, "*batch"],
    active: Bool[Array, "*batch"] | bool = True,
) -> GateState:
    """Take one token in every active branch; the others stay as they are.

    Args:
        token: ids at or beyond V count as special tokens.
        log_prob: of that token, natural logarithm.
        active: branches that took a token.
    """
    token_class = jnp.take(automaton.token_class, token, mode="fill", fill_value=automaton.foreign_class)
    log_prob = jnp.asarray(log_prob, jnp.float32)
    marks = jnp.asarray(automaton.class_marks)[gate.state, token_class]
    state = jnp.asarray(automaton.class_next)[gate.state, token_class].astype(jnp.int32)
    answer, letter = _has(marks, Mark.ANSWER), _has(marks, Mark.LETTER)
    taken = replace(
        gate,
        state=state,
        sum_all=gate.sum_all + jnp.where(answer, log_prob, 0),
        count_all=gate.count_all + answer,
        sum_letter=gate.sum_letter + jnp.where(letter, log_prob, 0),
        count_letter=gate.count_letter + letter,
    )
    closes = _has(marks, Mark.CLOSES_FIRST)
    taken = replace(taken, confidence=jnp.where(closes, _measure(taken, marks), gate.confidence))
    return jax.tree.map(lambda new, old: jnp.where(active, new, old), taken, gate)


def confidence(gate: GateState) -> Float32[Array, "*batch"]:
    """Confidence in the first answer, in [0, 1]; -1 where there is none (yet)."""
    return gate.confidence


def allowed_tokens(
    automaton: Automaton, gate: GateState, room: int | Int[Array, "*batch"] = NEVER
) -> Bool[Array, "*batch V"]:
    """Tokens after which the response can still become well-formed; all of them where it no longer can.

    Args:
        automaton: the protocol's.
        gate: of the branches.
        room: tokens that may still be written. Within it the response becomes complete, unless it is too late for that.
    """
    needed, room = jnp.asarray(automaton.needed), jnp.minimum(room, NEVER - 1)[..., None]
    in_time = needed[jnp.asarray(automaton.class_next)[gate.state]] < room
    too_late = needed[gate.state][..., None] > room
    allowed = jnp.asarray(automaton.class_allowed)[gate.state] & (in_time | too_late)
    return allowed[..., jnp.asarray(automaton.token_class)]


def first_closed(automaton: Automaton, gate: GateState) -> Bool[Array, "*batch"]:
    """Whether the first answer has been closed."""
    return jnp.asarray(automaton.first_closed)[gate.state]


def well_formed(automaton: Automaton, gate: GateState) -> Bool[Array, "*batch"]:
    """Whether the response can still become well-formed; once finished, whether it is."""
    return jnp.asarray(automaton.valid)[gate.state]


def finished(automaton: Automaton, gate: GateState) -> Bool[Array, "*batch"]:
    """Whether the end of the sequence has been taken."""
    return jnp.asarray(automaton.done)[gate.state]


def _measure(gate: GateState, marks: Array) -> Array:
    choice = _has(marks, Mark.CHOICE)
    total = jnp.where(choice, gate.sum_letter, gate.sum_all)
    count = jnp.where(choice, gate.count_letter, gate.count_all)
    defined = (count > 0) & ~_has(marks, Mark.FALLBACK)
    return jnp.where(defined, jnp.exp(total / jnp.maximum(count, 1)), -1.0)


def _has(marks: Array, mark: Mark) -> Array:
    return (marks & jnp.uint8(mark)) != 0
