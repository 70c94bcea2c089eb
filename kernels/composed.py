"""Decoding as two `attend` and a `merge`: what every device can do, and what a fused kernel has to beat."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels.attention import attend, merge
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.quantized import Quantized, dequantize

XLA_SPLITS = True


def refusal(*arguments) -> None:
    """Every shape on every device is served."""


def decode(
    q: Float[Array, "B G N H"],
    prompt_k: Array | Quantized,
    prompt_v: Array | Quantized,
    mask: Mask,
    k: Float[Array, "B G R K H"],
    v: Float[Array, "B G R K H"],
    lengths: Int[Array, "B G"],
) -> Float[Array, "B G N H"]:
    """See `videoauto_jax.kernels.attention.decode_attention`. A quantized prompt is read whole at q's precision."""
    prompt = attend(q, dequantize(prompt_k, q.dtype), dequantize(prompt_v, q.dtype), mask)
    rows, branches, slots = k.shape[:3]
    flat = lambda x: x.reshape(rows * branches, *x.shape[2:])  # noqa: E731
    stop = jnp.minimum(flat(lengths), slots).astype(jnp.int32)[:, None]
    out, lse = attend(flat(q)[:, None], flat(k), flat(v), Mask(jnp.zeros_like(stop), stop, "shared"))
    return merge(prompt, (out.reshape(q.shape), lse.reshape(q.shape[:-1])))[0]
