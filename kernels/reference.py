"""Attention in plain XLA, for any device: the other backends' oracle and the CPU's workhorse.

Scores of all pairs never exist for long rows: queries go through in chunks, and rows with bounded segments become many
short rows that look only at their neighbourhood.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.sharded import devices_apart

XLA_SPLITS = True
MAX_SCORES, MAX_TOTAL = 2**22, 2**28
"""Scores that may exist at once: of one head and row (16 MiB in float32), and of all of a device (1 GiB)."""


def refusal(q: Array, k: Array, v: Array, mask: Mask) -> None:
    """Every shape on every device is served."""


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """See `videoauto_jax.kernels.attention.attend`."""
    rows, length, heads, _ = q.shape
    if mask.bound is not None and 2 * mask.bound < length:
        return _banded(q, k, v, mask)
    here = max(1, rows * heads // devices_apart(rows, k.shape[2]))
    together = max(1, min(MAX_SCORES, MAX_TOTAL // here) // max(1, k.shape[1]))
    return _dense(q, k, v, mask) if length <= together else _chunked(q, k, v, mask, together)


@jax.custom_vjp
def _dense(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """All pairs at once. The backward pass makes the weights anew from the log-sum-exp (FlashAttention-2, arXiv
    2307.08691 §3.1): of what has the size of all pairs nothing is kept, nor stacked over scanned layers."""
    return _dense_forward(q, k, v, mask)[0]


def _dense_forward(q: Array, k: Array, v: Array, mask: Mask) -> tuple[tuple[Array, Array], tuple]:
    scores = _scores(q, k, mask)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    seen = total > 0
    safe = jnp.where(seen, total, 1.0)
    out = _weighted(weights.astype(v.dtype), v) / safe
    lse = jnp.where(seen, top + jnp.log(safe), -jnp.inf)
    out, lse = _apart(out, q.shape).astype(q.dtype), _apart(lse, q.shape)[..., 0]
    return (out, lse), (q, k, v, mask, out, lse)


def _dense_backward(kept: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, lse = kept
    d_out, d_lse = cotangents
    heads = k.shape[2]
    slope = d_lse - jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)
    finite = _together(jnp.where(jnp.isfinite(lse), lse, 0.0)[..., None], heads)
    weights = jnp.exp(_scores(q, k, mask) - finite)
    d_folded, q_folded = _together(d_out, heads), _together(q, heads)
    d_weights = _einsum("bkmh,bskh->bkms", d_folded, v)
    d_scores = weights * (d_weights + _together(slope[..., None], heads)) * q.shape[-1] ** -0.5
    d_scores = d_scores.astype(q.dtype)
    d_q = _apart(_weighted(d_scores, k), q.shape)
    d_k = _einsum("bkms,bkmh->bskh", d_scores, q_folded)
    d_v = _einsum("bkms,bkmh->bskh", weights.astype(v.dtype), d_folded)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_dense.defvjp(_dense_forward, _dense_backward)


def _scores(q: Array, k: Array, mask: Mask) -> Float[Array, "B K M S"]:
    scores = _einsum("bkmh,bskh->bkms", _together(q, k.shape[2]), k) * q.shape[-1] ** -0.5
    rows, heads, _, keys = scores.shape
    allowed = mask.allowed(keys)[:, None, None]
    apart = scores.reshape(rows, heads, -1, q.shape[1], keys)
    return jnp.where(allowed, apart, -jnp.inf).reshape(scores.shape)


def _weighted(weights: Float[Array, "B K M S"], v: Float[Array, "B S K H"]) -> Float[Array, "B K M H"]:
    return _einsum("bkms,bskh->bkmh", weights, v)


def _einsum(equation: str, *arrays: Array) -> Float[Array, "..."]:
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _together(x: Float[Array, "B T N C"], heads: int) -> Float[Array, "B K M C"]:
    """Queries that share keys as one axis, `M = G * T`: one large product per key/value head."""
    rows, length, _, size = x.shape
    return jnp.moveaxis(x.reshape(rows, length, heads, -1, size), 1, 3).reshape(rows, heads, -1, size)


def _apart(x: Float[Array, "B K M C"], shape: tuple[int, ...]) -> Float[Array, "B T N C"]:
    """The inverse of `_together`."""
    rows, length, heads, _ = shape
    grouped = x.reshape(rows, x.shape[1], -1, length, x.shape[-1])
    return jnp.moveaxis(grouped, 3, 1).reshape(rows, length, heads, x.shape[-1])


def _chunked(q: Array, k: Array, v: Array, mask: Mask, chunk: int) -> tuple[Array, Array]:
    """Queries in chunks, one after the other."""
    rows, length = q.shape[:2]
    count = -(-length // chunk)
    split = lambda x: jnp.moveaxis(_pad(x, 0, count * chunk - length).reshape(rows, count, chunk, *x.shape[2:]), 1, 0)  # noqa: E731

    wide_k, wide_v = k.astype(jnp.float32), v.astype(jnp.float32)  # so that the chunks' gradients are summed in float32

    def one(piece: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q_chunk, start, stop = piece
        return _dense(q_chunk, wide_k.astype(k.dtype), wide_v.astype(v.dtype), Mask(start, stop))

    out, lse = jax.lax.map(one, (split(q), split(mask.start), split(mask.stop)))
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, count * chunk, *x.shape[3:])[:, :length]  # noqa: E731
    return join(out), join(lse)


def _banded(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """Chunks of queries; each sees its own chunk and the neighbours that a segment can reach into.

    With chunks of a third of the bound, a query meets 4/3 of the bound in keys, and not twice the bound.
    """
    rows, length = mask.start.shape
    chunk = -(-mask.bound // 3)
    count = -(-length // chunk)
    tail = count * chunk - length
    before, after = 3, 0 if mask.kind == "causal" else 3
    reach = before + 1 + after

    def windows(x: Array) -> Array:
        padded = _pad(x, before * chunk, tail + after * chunk)
        pieces = [padded[:, i * chunk : (i + count) * chunk].reshape(rows, count, chunk, *x.shape[2:])
                  for i in range(reach)]  # fmt: skip
        return _fold(jnp.concatenate(pieces, axis=2))

    chunks = lambda x: _fold(_pad(x, 0, tail).reshape(rows, count, chunk, *x.shape[2:]))  # noqa: E731
    first = jnp.tile((jnp.arange(count, dtype=jnp.int32) - before) * chunk, rows)[:, None]
    pieces = chunks(q), windows(k), windows(v), chunks(mask.start) - first, chunks(mask.stop) - first

    together = max(1, MAX_SCORES // (reach * chunk**2))
    if rows * count <= together:
        out, lse = _dense_rows(*pieces)
    else:
        row = lambda piece: jax.tree.map(lambda x: x[0], _dense_rows(*(x[None] for x in piece)))  # noqa: E731
        out, lse = jax.lax.map(row, pieces, batch_size=together)
    join = lambda x: x.reshape(rows, count * chunk, *x.shape[2:])[:, :length]  # noqa: E731
    return join(out), join(lse)


def _dense_rows(q: Array, k: Array, v: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    return _dense(q, k, v, Mask(start, stop))


def _pad(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))


def _fold(x: Float[Array, "B C ..."]) -> Float[Array, "BC ..."]:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
