"""Attention by cuDNN, through the primitives beneath `jax.nn.dot_product_attention`.

The public function rounds the log-sum-exp to 16 bits, so the primitives are bound directly. Only rows of one sequence
padded on the right, and one run of keys shared by all queries, are given to it. That excludes by construction its two
ways of being wrong without a word: packed segments with grouped heads (jax before 0.11.1, jax-ml/jax#39521) and windows
that are not causal (#39576).
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.cotangents import through_both
from videoauto_jax.kernels.mask import Mask

XLA_SPLITS = False

PRIVATE = (
    "_dot_product_attention_fwd_p_wrapper", "_dot_product_attention_bwd_p_wrapper", "AttentionLayout", "MaskType",
    "check_cudnn_version",
)  # fmt: skip
"""What is taken from a private module of jax, which may change."""


def refusal(q: Array, k: Array, v: Array, mask: Mask) -> str | None:
    """Why cuDNN cannot serve a call, or None."""
    kind = backends.device_kind()
    if not kind.startswith("NVIDIA"):
        return f"it runs on NVIDIA GPUs, and this is {kind}"
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it multiplies bfloat16 or float16, not {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"head size {q.shape[-1]} is not a multiple of 8 up to 128"
    if not all(hasattr(_primitives(), name) for name in PRIVATE):
        return f"this jax ({jax.__version__}) has other primitives than those bound here"
    capability = backends.capability()
    if capability is not None and capability < 8.0:
        return f"its attention needs compute capability 8.0, and this GPU has {capability}"
    if capability is not None and not _installed():
        return "this jax finds no cuDNN library"
    if not mask.aligned or mask.kind not in ("causal", "shared"):
        return "it is given rows of one sequence padded on the right, and this mask is not known to be that"
    return None


def _installed() -> bool:
    """Whether cuDNN is there, asked on a machine that has a GPU."""
    try:
        return bool(_primitives().check_cudnn_version())
    except RuntimeError:
        return False


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """See `videoauto_jax.kernels.attention.attend`."""
    seen = mask.stop > mask.start
    if mask.kind == "causal":
        # Padding is on the right: no query that counts can see it, so nothing but causality need be said.
        return _attend(q, k, v, seen, None, True)
    return _attend(q, k, v, seen, jnp.max(mask.stop, axis=1), False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, seen: Array, keys: Array | None, causal: bool) -> tuple[Array, Array]:
    return _forward(q, k, v, seen, keys, causal)[0]


def _forward(q: Array, k: Array, v: Array, seen: Array, keys: Array | None, causal: bool) -> tuple:
    out, statistics = bind_forward(q, k, v, *_lengths(q, keys), **_options(q, keys, causal))
    lse = jnp.moveaxis(statistics, 1, 2)
    saved = q, k, v, seen, keys, jnp.where(seen[..., None, None], out, 0), statistics
    return (saved[5], jnp.where(seen[..., None], lse, -jnp.inf)), saved


def _backward(causal: bool, saved: tuple, bars: tuple[Any, Any]) -> tuple:
    q, k, v, seen, keys, out, statistics = saved
    options = _options(q, keys, causal)
    run = lambda *rest: bind_backward(q, k, rest[0], *_lengths(q, keys), statistics, *rest[1:], **options)  # noqa: E731
    return *through_both(run, (q, k, v), seen, out, bars), None, None


def _forward_marked(q: Any, k: Any, v: Any, seen: Any, keys: Any, causal: bool) -> tuple:
    q, k, v, seen, keys = (None if x is None else x.value for x in (q, k, v, seen, keys))
    return _forward(q, k, v, seen, keys, causal)


_attend.defvjp(_forward_marked, _backward, symbolic_zeros=True)


def _lengths(q: Array, keys: Array | None) -> tuple[Array, Array]:
    """Lengths of queries and keys per row; empty where there is nothing to say. No row may be without any key."""
    if keys is None:
        return jnp.zeros(0, q.dtype), jnp.zeros(0, q.dtype)
    return jnp.full(q.shape[0], q.shape[1], jnp.int32), jnp.maximum(keys, 1).astype(jnp.int32)


def _options(q: Array, keys: Array | None, causal: bool) -> dict:
    kinds = _primitives().MaskType
    kind = kinds.CAUSAL if causal else kinds.PADDING
    return {
        "scale": q.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": kind,
        "layout": _primitives().AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }


def bind_forward(q: Array, k: Array, v: Array, q_lengths: Array, k_lengths: Array, **options) -> tuple[Array, Array]:
    """cuDNN's forward pass: output, and statistics `[B, N, T]` that are the natural log-sum-exp in float32."""
    none = jnp.zeros(0, q.dtype)
    operands = q, k, v, none, q_lengths, k_lengths, none, none, none, none
    return tuple(_primitives()._dot_product_attention_fwd_p_wrapper.bind(*operands, is_training=True, **options))


def bind_backward(
    q: Array, k: Array, v: Array, q_lengths: Array, k_lengths: Array, statistics: Array, out: Array, out_bar: Array,
    **options,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """cuDNN's backward pass."""
    none = jnp.zeros(0, q.dtype)
    operands = q, k, v, none, q_lengths, k_lengths, none, none, none, none, statistics, out, out_bar
    return tuple(_primitives()._dot_product_attention_bwd_p_wrapper.bind(*operands, **options)[:3])


def _primitives() -> ModuleType:
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo
