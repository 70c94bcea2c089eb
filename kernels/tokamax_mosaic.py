"""Attention by tokamax, if it is installed: its Mosaic kernels for Hopper and Blackwell, below its public function.

The public function takes no ranges of keys and keeps the statistics of the softmax to itself, so the operation beneath
it is called. `auto` takes it only where a measured row of `autotune.json` says so.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from tokamax._src.ops.attention import api, base

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.cotangents import through_both
from videoauto_jax.kernels.mask import Mask

XLA_SPLITS = False

NAME = "mosaic_gpu"
"""Of the operation, in tokamax."""


def refusal(q: Array, k: Array, v: Array, mask: Mask) -> str | None:
    """Why tokamax cannot serve a call, or None."""
    kind, capability = backends.device_kind(), backends.capability()
    if not kind.startswith("NVIDIA"):
        return f"its kernels are for NVIDIA GPUs, and this is {kind}"
    if capability is not None and not 9.0 <= capability < 11.0:
        return f"its kernels with a gradient are for compute capability 9 and 10, and this GPU has {capability}"
    if NAME not in api.IMPLEMENTATIONS:
        return f"this tokamax has no operation {NAME!r}"
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it multiplies bfloat16 or float16, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] > 128:
        return f"head size {q.shape[-1]} is above 128"
    return None


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """See `videoauto_jax.kernels.attention.attend`."""
    seen = mask.stop > mask.start
    # A query that sees nothing gets one key near its neighbours', and no weight afterwards: no row may be empty.
    start = jnp.where(seen, mask.start, jnp.clip(mask.start, 0, k.shape[1] - 1))[:, None]
    stop = jnp.where(seen, mask.stop, start[:, 0] + 1)[:, None]
    causal = mask.kind == "causal"  # of which it skips the future by itself
    ranges = {} if causal and mask.aligned else {"k_start": start} if causal else {"k_start": start, "k_end": stop}
    return _attend(q, k, v, seen, base.Mask(is_causal=causal, **ranges))


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, seen: Array, mask: base.Mask) -> tuple[Array, Array]:
    return _forward(q, k, v, seen, mask)[0]


def _forward(q: Array, k: Array, v: Array, seen: Array, mask: base.Mask) -> tuple:
    out, statistics = operation()(q, k, v, mask=mask, return_residuals=True)
    lse = jnp.moveaxis(statistics[0] + jnp.log(statistics[1]), 1, 2)
    out, lse = jnp.where(seen[..., None, None], out, 0), jnp.where(seen[..., None], lse, -jnp.inf)
    return (out, lse), (q, k, v, seen, mask, out, statistics)


def _backward(saved: tuple, bars: tuple[Any, Any]) -> tuple:
    q, k, v, seen, mask, out, statistics = saved
    named = dict(operation().bind(q, k, v, mask=mask).kwargs)
    del named["return_residuals"]

    def one(v: Array, out: Array, out_bar: Array) -> tuple[Array, Array, Array]:
        bars = operation().vjp(statistics, out, out_bar, q, k, v, **named)
        return bars["q"], bars["k"], bars["v"]

    return *through_both(one, (q, k, v), seen, out, bars), None, None


def _forward_marked(q: Any, k: Any, v: Any, seen: Any, mask: Any) -> tuple:
    value = functools.partial(jax.tree.map, lambda x: x.value, is_leaf=lambda x: hasattr(x, "perturbed"))
    return _forward(*map(value, (q, k, v, seen, mask)))


_attend.defvjp(_forward_marked, _backward, symbolic_zeros=True)


def operation() -> base.DotProductAttention:
    """tokamax's own, which knows its gradient."""
    return api.IMPLEMENTATIONS[NAME]
