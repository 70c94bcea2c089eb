"""Decoding as `attend` and `merge`: what every device can do, and what a fused kernel has to beat.

The branches and query heads that share a key head become the queries of one head, so that keys are read once for all of
them. Off the CPU a long prompt is cut into rows of a batch, and so spread over the device, and merged again.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.attention import Partial, attend, merge
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.quantized import Quantized, dequantize

XLA_SPLITS = True

SPLIT = 2048
"""Keys of one row of the batch into which a long prompt is cut."""


def refusal(*arguments) -> None:
    """Every shape on every device is served."""


def decode(
    q: Float[Array, "B G N H"],
    prompt_k: Array | Quantized,
    prompt_v: Array | Quantized,
    mask: Mask,
    k: Float[Array, "L B G R K H"] | Quantized,
    v: Float[Array, "L B G R K H"] | Quantized,
    lengths: Int[Array, "B G"],
    layer: Int[Array, ""],
    *,
    reach: int | None = None,
) -> Partial:
    """See `videoauto_jax.kernels.attention.decode_partial`. What is quantized is widened in memory first.

    Args:
        reach: static upper bound on `lengths`. One slice takes the layer and what is within reach: two would copy.
    """
    take = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)  # noqa: E731
    prompt_k, prompt_v = jax.tree.map(take, (prompt_k, prompt_v))
    rows, branches, most = k.shape[1:4]
    slots = most if reach is None else min(reach, most)

    def within(x):
        start, size = (layer, *[0] * (x.ndim - 1)), (1, rows, branches, slots, *x.shape[4:])
        return jax.lax.dynamic_slice(x, start, size)[0]

    k, v = (dequantize(x, q.dtype) for x in jax.tree.map(within, (k, v)))
    prompt = _over_prompt(q, dequantize(prompt_k, q.dtype), dequantize(prompt_v, q.dtype), mask)
    flat = lambda x: x.reshape(rows * branches, *x.shape[2:])  # noqa: E731
    stop = jnp.minimum(flat(lengths), slots).astype(jnp.int32)[:, None]
    mask = Mask(jnp.zeros_like(stop), stop, "shared", aligned=True)
    out, lse = attend(flat(q)[:, None], flat(k), flat(v), mask, forward_only=True)
    return merge(prompt, (out.reshape(q.shape), lse.reshape(q.shape[:-1])))


def _over_prompt(q: Array, k: Array, v: Array, mask: Mask) -> Partial:
    splits = k.shape[1] // SPLIT
    if backends.device_kind() == "cpu" or splits < 2 or k.shape[1] % SPLIT:
        return attend(q, k, v, mask, forward_only=True)
    rows, branches, heads, size = q.shape
    kv_heads, group = k.shape[2], heads // k.shape[2]
    packed = jnp.moveaxis(q.reshape(rows, branches, kv_heads, group, size), 3, 2)
    packed = packed.reshape(rows, branches * group, kv_heads, size)
    cut = lambda x: x.reshape(rows * splits, SPLIT, *x.shape[2:])  # noqa: E731
    mask_of_heads = jax.tree.map(lambda x: jnp.repeat(x, group, axis=1), mask)
    parts = jax.vmap(lambda i: mask_of_heads.of_keys(i * SPLIT, SPLIT), out_axes=1)(jnp.arange(splits))
    parts = jax.tree.map(lambda x: x.reshape(rows * splits, -1), parts)
    outs, lses = attend(jnp.repeat(packed, splits, axis=0), cut(k), cut(v), parts, forward_only=True)
    unpack = lambda x: jnp.moveaxis(x.reshape(rows, branches, group, kv_heads, *x.shape[3:]), 2, 3)  # noqa: E731
    out, lse = merge_all(*(x.reshape(rows, splits, *x.shape[1:]) for x in (outs, lses)))
    return unpack(out).reshape(q.shape), unpack(lse).reshape(q.shape[:-1])


def merge_all(outs: Float[Array, "B C T N H"], lses: Float[Array, "B C T N"]) -> Partial:
    """Joins `C` partial attentions of the same queries over disjoint keys."""
    lse = jax.nn.logsumexp(lses, axis=1)
    shift = jnp.where(jnp.isfinite(lse), lse, 0.0)[:, None]
    return jnp.sum(outs * jnp.exp(lses - shift)[..., None], axis=1).astype(outs.dtype), lse
