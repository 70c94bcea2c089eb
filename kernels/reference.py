"""Attention in plain XLA, for any device: the other backends' oracle and the CPU's workhorse.

Scores of all pairs never exist for long rows: queries go through in chunks, and rows with bounded segments become many
short rows that look only at their neighbourhood.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.kernels.mask import Mask

XLA_SPLITS = True
MAX_SCORES = 2**22
"""Scores of one head and row that may exist at once (16 MiB in float32)."""


def refusal(q: Array, k: Array, v: Array, mask: Mask) -> None:
    """Every shape on every device is served."""


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """See `videoauto_jax.kernels.attention.attend`; differentiated by JAX."""
    length = q.shape[1]
    if mask.bound is not None and 3 * mask.bound < length:
        return _banded(q, k, v, mask)
    if length * k.shape[1] <= MAX_SCORES:
        return _dense(q, k, v, mask.allowed(k.shape[1]))
    return _chunked(q, k, v, mask)


def _dense(q: Array, k: Array, v: Array, allowed: Bool[Array, "B T S"]) -> tuple[Array, Array]:
    rows, length, heads, size = q.shape
    grouped = q.reshape(rows, length, k.shape[2], heads // k.shape[2], size)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * size**-0.5
    allowed = allowed[:, None, None]
    scores = jnp.where(allowed, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-1e30))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1)
    seen = total > 0
    safe = jnp.where(seen, total, 1.0)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.moveaxis(safe, -1, 1)[..., None]
    lse = jnp.where(seen, top[..., 0] + jnp.log(safe), -jnp.inf)
    return out.reshape(q.shape).astype(q.dtype), jnp.moveaxis(lse, -1, 1).reshape(rows, length, heads)


def _chunked(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """Queries in chunks, one after the other; the backward pass recomputes each chunk's scores."""
    rows, length = q.shape[:2]
    chunk = max(1, MAX_SCORES // k.shape[1])
    count = -(-length // chunk)
    split = lambda x: jnp.moveaxis(_pad(x, 0, count * chunk - length).reshape(rows, count, chunk, *x.shape[2:]), 1, 0)  # noqa: E731

    @jax.checkpoint
    def one(piece: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q_chunk, start, stop = piece
        return _dense(q_chunk, k, v, Mask(start, stop).allowed(k.shape[1]))

    out, lse = jax.lax.map(one, (split(q), split(mask.start), split(mask.stop)))
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, count * chunk, *x.shape[3:])[:, :length]  # noqa: E731
    return join(out), join(lse)


def _banded(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """Chunks of `bound` queries; each sees its own chunk and the neighbours that a segment can reach into."""
    rows, length = mask.start.shape
    bound = mask.bound
    count = -(-length // bound)
    tail = count * bound - length
    reach = 2 if mask.kind == "causal" else 3

    def windows(x: Array) -> Array:
        padded = _pad(x, bound, tail + (reach - 2) * bound)
        pieces = [padded[:, i * bound : (i + count) * bound].reshape(rows, count, bound, *x.shape[2:])
                  for i in range(reach)]  # fmt: skip
        return _fold(jnp.concatenate(pieces, axis=2))

    chunks = lambda x: _fold(_pad(x, 0, tail).reshape(rows, count, bound, *x.shape[2:]))  # noqa: E731
    first = jnp.tile((jnp.arange(count, dtype=jnp.int32) - 1) * bound, rows)[:, None]
    pieces = chunks(q), windows(k), windows(v), chunks(mask.start) - first, chunks(mask.stop) - first

    def one(piece: tuple[Array, ...]) -> tuple[Array, Array]:
        q_chunk, k_window, v_window, start, stop = (x[None] for x in piece)
        out, lse = _dense(q_chunk, k_window, v_window, Mask(start, stop).allowed(reach * bound))
        return out[0], lse[0]

    together = max(1, MAX_SCORES // (3 * bound**2))
    if rows * count <= together:
        out, lse = jax.vmap(lambda *piece: one(piece))(*pieces)
    else:
        out, lse = jax.lax.map(jax.checkpoint(one), pieces, batch_size=together)
    join = lambda x: x.reshape(rows, count * bound, *x.shape[2:])[:, :length]  # noqa: E731
    return join(out), join(lse)


def _pad(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))


def _fold(x: Float[Array, "B C ..."]) -> Float[Array, "BC ..."]:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
