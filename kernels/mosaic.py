"""Attention for Hopper GPUs in Pallas Mosaic GPU: the kernels' shapes, their residuals, and when they cannot serve.

Two kinds of padding happen here and nowhere else: lengths to the kernels' tiles, with queries that see nothing, and
head sizes to one whose product is whole (72 to 80), with zeros that change no score.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.mask import Mask

XLA_SPLITS = False

SIZES = (64, 80, 96, 128)
"""Head sizes for which there are kernels; smaller ones are padded to the next."""

FORWARD = {64: (128, 4), 80: (128, 4), 96: (128, 3), 128: (128, 2)}
QUERIES = {64: (128, 4), 80: (128, 2), 96: (128, 2), 128: (64, 4)}
KEYS = {64: (128, 2), 80: (64, 4), 96: (64, 4), 128: (64, 4)}
"""Head size -> (block, stages) of each kernel: what fits into 227 KiB of shared memory and spills no register. The
kernel for dk and dv has none to spare: with three stages, even the remainder of a division by 3 makes it spill."""


def refusal(q: Array, k: Array, v: Array, mask: Mask) -> str | None:
    """Why these kernels cannot serve a call, or None."""
    if jax.__version_info__ < (0, 11):
        return f"its kernels need jax 0.11 or newer, and this is {jax.__version__}"
    kind = backends.device_kind()
    if not backends.interpreting() and not any(name in kind for name in ("H100", "H200", "H800", "H20")):
        return f"its kernels are for Hopper GPUs, and this is {kind}"
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"tensor cores multiply bfloat16 or float16, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] > SIZES[-1]:
        return f"head size {q.shape[-1]} is above {SIZES[-1]}"
    return None


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """See `videoauto_jax.kernels.attention.attend`."""
    return _attend(q, k, v, mask, _interpreter())


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, mask: Mask, interpret: Any) -> tuple[Array, Array]:
    return _forward(q, k, v, mask, interpret)[0]


def _forward(q: Array, k: Array, v: Array, mask: Mask, interpret: Any) -> tuple[tuple[Array, Array], tuple]:
    from videoauto_jax.kernels.mosaic_forward import ForwardConfig, forward

    length, size = q.shape[1], q.shape[-1]
    padded = [_pad(x) for x in (q, k, v)]
    config = ForwardConfig(*FORWARD[padded[0].shape[-1]])
    out, lse = forward(*padded, _pad_mask(mask), size**-0.5, config, interpret)
    out, lse = out[:, :length, :, :size], lse[:, :, :length]
    return (out, jnp.moveaxis(lse, 1, 2)), (q, k, v, mask, out, lse)


def _backward(interpret: Any, saved: tuple, bars: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    from videoauto_jax.kernels.mosaic_backward import BackwardConfig, backward_keys, backward_queries
    from videoauto_jax.kernels.mosaic_tiles import LOG2_E, MOST

    q, k, v, mask, out, lse = saved
    out_bar, lse_bar = bars
    delta = jnp.einsum("btnh,btnh->bnt", out, out_bar, preferred_element_type=jnp.float32) - jnp.moveaxis(lse_bar, 2, 1)
    base2 = jnp.where(jnp.isfinite(lse), lse * LOG2_E, MOST)
    padded = [_pad(x) for x in (q, k, v)]
    size = padded[0].shape[-1]
    rest = _pad_mask(mask), _pad(out_bar), _pad_last(base2), _pad_last(delta), q.shape[-1] ** -0.5
    q_bar = backward_queries(*padded, *rest, BackwardConfig(*QUERIES[size]), interpret)
    k_bar, v_bar = backward_keys(*padded, *rest, BackwardConfig(*KEYS[size]), interpret)
    return *(bar[:, : x.shape[1], :, : x.shape[-1]] for bar, x in zip((q_bar, k_bar, v_bar), (q, k, v))), None


_attend.defvjp(_forward, _backward)


def _interpreter() -> Any:
    if not backends.interpreting():
        return False
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(detect_races=True)


def _pad(x: Array) -> Array:
    size = next(size for size in SIZES if size >= x.shape[-1])
    return jnp.pad(x, ((0, 0), (0, _missing(x.shape[1])), (0, 0), (0, size - x.shape[-1])))


def _pad_mask(mask: Mask) -> Mask:
    return Mask(_pad_last(mask.start.astype(jnp.int32)), _pad_last(mask.stop.astype(jnp.int32)))


def _pad_last(x: Array) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, _missing(x.shape[-1]))])


def _missing(length: int) -> int:
    from videoauto_jax.kernels.mosaic_tiles import TILE

    return -length % TILE
