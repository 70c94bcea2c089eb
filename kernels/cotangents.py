"""Gradients through output and log-sum-exp, for libraries whose backward pass takes the output's cotangent only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Gradients = tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]


def through_both(
    backward: Callable[[Array, Array, Array], Gradients],
    qkv: tuple[Array, Array, Array],
    seen: Bool[Array, "B T"],
    out: Float[Array, "B T N H"],
    bars: tuple[Any, Any],
) -> Gradients:
    """Gradients of q, k and v.

    A library computes `p (<out_bar, v> - <out_bar, out>)` for each score. Called with values of 1, cotangents of the
    log-sum-exp in the first place and an output of 0, it computes what the log-sum-exp adds: a second call, made only
    where something uses it.

    Args:
        backward: `backward(v, out, out_bar)`, for the same q and k.
        qkv: what attended.
        seen: queries that see anything; the others have no gradient.
        out: the forward pass's.
        bars: cotangents of output and log-sum-exp, either of which may be a `SymbolicZero`.
    """
    q, k, v = qkv
    out_bar, lse_bar = bars
    gradients = tuple(map(jnp.zeros_like, qkv))
    if not isinstance(out_bar, jax.custom_derivatives.SymbolicZero):
        gradients = backward(v, out, jnp.where(seen[..., None, None], out_bar, 0))
    if not isinstance(lse_bar, jax.custom_derivatives.SymbolicZero):
        first = jnp.arange(q.shape[-1]) == 0
        bar = (jnp.where(seen[..., None], lse_bar, 0.0)[..., None] * first).astype(q.dtype)
        ones = jnp.broadcast_to(first, v.shape).astype(v.dtype)
        q_bar, k_bar, _ = backward(ones, jnp.zeros_like(out), bar)
        gradients = gradients[0] + q_bar, gradients[1] + k_bar, gradients[2]
    return gradients
