"""Which query may see which key: one contiguous range of keys per query.

Packed segments, causality, a prompt shared by branches and the filled part of a cache are all such ranges, and so is
what remains of them on a slice of the keys. A kernel therefore knows from two integers per query which blocks of keys
to skip, which to mask and which to take whole; no mask of all pairs exists anywhere.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Kind = Literal["causal", "segments", "shared", "ranges"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Query `t` of row `b` sees the keys `start[b, t] <= s < stop[b, t]`; none if the range is empty.

    Attributes:
        start, stop: the ranges. An empty one is written `start == stop`.
        kind: what is known about the ranges before they are; libraries that take no ranges depend on it.
            "causal": queries and keys are the same tokens, a query sees its segment up to itself.
            "segments": queries and keys are the same tokens, a query sees its whole segment.
            "shared": all queries of a row that see anything see the same keys.
            "ranges": nothing is known.
        bound: static upper bound on the length of a segment ("causal" and "segments"), or None: with it, work is linear
            in the number of tokens.
        aligned: whether each row's keys are one run from the first key on ("causal": the row is one segment, padded on
            the right; "shared": so is what is shared). Libraries that take lengths depend on it.
    """

    start: Int[Array, "B T"]
    stop: Int[Array, "B T"]
    kind: Kind = dataclasses.field(default="ranges", metadata={"static": True})
    bound: int | None = dataclasses.field(default=None, metadata={"static": True})
    aligned: bool = dataclasses.field(default=False, metadata={"static": True})

    def allowed(self, keys: int) -> Bool[Array, "B T S"]:
        """The ranges written out; for blocks, never for long rows."""
        index = jnp.arange(keys, dtype=jnp.int32)
        return (self.start[..., None] <= index) & (index < self.stop[..., None])

    def of_keys(self, offset: int | Int[Array, ""], keys: int) -> "Mask":
        """The same queries' ranges within the slice `[offset, offset + keys)` of the keys."""
        start, stop = (jnp.clip(x - offset, 0, keys) for x in (self.start, self.stop))
        still = self.kind == "shared"  # also still aligned: what is cut off on the left leaves no gap
        return Mask(start, stop, "shared" if still else "ranges", aligned=still and self.aligned)


def packed(segment_ids: Int[Array, "B T"], *, causal: bool, bound: int | None = None, aligned: bool = False) -> Mask:
    """Rows that see themselves: each token its own segment, up to itself if causal.

    Args:
        segment_ids: a segment is a run of equal non-zero ids (two runs of one id are two segments); 0 is padding, which
            sees nothing and is seen by nothing.
        causal: whether a token sees only what is before it, and itself.
        bound: static upper bound on the length of a segment.
        aligned: each row is one segment, padded on the right.
    """
    rows, length = segment_ids.shape
    index = jnp.arange(length, dtype=jnp.int32)
    edge = jnp.ones((rows, 1), bool)
    change = segment_ids[:, 1:] != segment_ids[:, :-1]
    start = jax.lax.cummax(jnp.where(jnp.concatenate([edge, change], 1), index, 0), axis=1)
    stop = jnp.broadcast_to(index + 1, (rows, length))
    if not causal:
        last = jnp.where(jnp.concatenate([change, edge], 1), index + 1, length)
        stop = jax.lax.cummin(last, axis=1, reverse=True)
    return Mask(start, jnp.where(segment_ids > 0, stop, start), "causal" if causal else "segments", bound, aligned)


def shared(queries: Bool[Array, "B T"], keys: Bool[Array, "B S"], *, aligned: bool = False) -> Mask:
    """Every true query sees every true key.

    Args:
        queries: which queries see anything.
        keys: which keys are seen; one run of true per row, anywhere in it.
        aligned: the run begins with the first key.
    """
    index = jnp.arange(keys.shape[1], dtype=jnp.int32)
    stop = jnp.max(jnp.where(keys, index + 1, 0), axis=1, initial=0)
    start = jnp.min(jnp.where(keys, index, keys.shape[1]), axis=1, initial=keys.shape[1])
    start = jnp.minimum(start, stop)[:, None]
    start, stop = jnp.broadcast_to(start, queries.shape), jnp.where(queries, stop[:, None], start)
    return Mask(start, stop, "shared", aligned=aligned)
