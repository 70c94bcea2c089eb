"""Attention for TPUs through JAX's splash kernels.

Splash skips blocks by a mask known when the program is traced (causal, or a band where segments are bounded) and tells
segments apart by ids, not ranges. Its gradient takes no cotangent of the log-sum-exp; the kernels below it do, as part
of `delta`, so they are called directly.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.mask import Mask

XLA_SPLITS = False

PRIVATE = "_splash_attention_bwd_dkv", "_splash_attention_bwd_dq"
"""What is taken from splash beyond its public functions, and may change."""
BLOCKS = (512, 256, 128)
"""Block sizes, best first; lengths are padded to a multiple of the last."""


def refusal(q: Array, k: Array, v: Array, mask: Mask) -> str | None:
    """Why splash cannot serve a call, or None."""
    kind = backends.device_kind()
    if not backends.interpreting() and not kind.startswith("TPU"):
        return f"its kernels are for TPUs, and this is {kind}"
    if not all(hasattr(splash, name) for name in PRIVATE):
        return f"this jax ({jax.__version__}) has other kernels than those called here"
    if mask.kind == "ranges":
        return "it takes segments, not a range per query"
    return None


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """See `videoauto_jax.kernels.attention.attend`."""
    ids = _segment_ids(mask, k.shape[1])
    seen = mask.stop > mask.start
    return _attend(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v, ids, seen, _static(q, k, mask))


def _segment_ids(mask: Mask, keys: int) -> splash.SegmentIds:
    """Ids that meet exactly where the ranges do; what sees nothing and what is not seen have ids of their own."""
    seen = mask.stop > mask.start
    if mask.kind == "shared":
        start = jnp.min(jnp.where(seen, mask.start, keys), axis=1, keepdims=True)
        stop = jnp.max(jnp.where(seen, mask.stop, 0), axis=1, keepdims=True)
        index = jnp.arange(keys)
        return splash.SegmentIds(seen.astype(jnp.int32), jnp.where((start <= index) & (index < stop), 1, -1))
    return splash.SegmentIds(jnp.where(seen, mask.start + 1, 0), jnp.where(seen, mask.start + 1, -1))


def _static(q: Array, k: Array, mask: Mask) -> tuple[int, int, int, str, int | None, bool]:
    """What the kernels are made from: lengths, heads per key head, kind and bound of the mask, interpreter or not."""
    return q.shape[1], k.shape[1], q.shape[2] // k.shape[2], mask.kind, mask.bound, backends.interpreting()


def _kernel(static: tuple) -> splash.SplashAttentionKernel:
    queries, keys, group, kind, bound, interpret = static
    shape = queries + _missing(queries), keys + _missing(keys)
    if kind == "shared" or (kind == "segments" and bound is None):
        one = masks.FullMask(shape)
    elif bound is None:
        one = masks.CausalMask(shape)
    else:
        one = masks.LocalMask(shape, (bound - 1, 0 if kind == "causal" else bound - 1), 0)
    down, across = (next(block for block in BLOCKS if length % block == 0) for length in shape)
    sizes = splash.BlockSizes(
        block_q=down, block_kv=across, block_q_dkv=down, block_kv_dkv=across, block_q_dq=down, block_kv_dq=across
    )
    return splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([one] * group), block_sizes=sizes, save_residuals=True, interpret=interpret
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, ids: splash.SegmentIds, seen: Array, static: tuple) -> tuple[Array, Array]:
    return _forward(q, k, v, ids, seen, static)[0]


def _forward(q: Array, k: Array, v: Array, ids: splash.SegmentIds, seen: Array, static: tuple) -> tuple:
    kernel = _kernel(static)
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out, (lse,) = jax.vmap(over_heads)(*_by_head(q, k, v), _pad_ids(ids))
    out, lse = _back(out, q.shape), _back(lse[..., None], (*q.shape[:-1], 1))[..., 0]
    out, lse = jnp.where(seen[..., None, None], out, 0), jnp.where(seen[..., None], lse, -jnp.inf)
    return (out, lse), (q, k, v, ids, seen, out, lse)


def _backward(static: tuple, saved: tuple, bars: tuple[Array, Array]) -> tuple:
    q, k, v, ids, seen, out, lse = saved
    out_bar, lse_bar = bars
    # Splash gives a query that sees nothing some weights nevertheless: with these, they multiply zeros.
    out_bar = jnp.where(seen[..., None, None], out_bar, 0)
    delta = jnp.sum(out.astype(jnp.float32) * out_bar.astype(jnp.float32), axis=-1)
    delta, lse = jnp.where(seen[..., None], delta - lse_bar, 0.0), jnp.where(seen[..., None], lse, 0.0)
    heads = lambda x: _by_head(x[..., None], k, v)[0][..., 0]  # noqa: E731
    operands = *_by_head(q, k, v), _by_head(out_bar, k, v)[0], heads(lse), heads(delta)
    one = functools.partial(_one_head_backward, _kernel(static))
    over_heads = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, None))
    q_bar, k_bar, v_bar = jax.vmap(over_heads)(*operands, _pad_ids(ids))
    keys = lambda x, like: jnp.moveaxis(x, 1, 2)[:, : like.shape[1]].astype(like.dtype)  # noqa: E731
    return _back(q_bar, q.shape).astype(q.dtype), keys(k_bar, k), keys(v_bar, v), None, None


_attend.defvjp(_forward, _backward)


def _one_head_backward(kernel, q, k, v, out_bar, lse, delta, ids) -> tuple[Array, Array, Array]:
    """One key head: q, out_bar `[group, T, H]`, k, v `[S, H]`, lse, delta `[group, T]`."""
    sizes, settings = (
        kernel.kwargs["block_sizes"],
        {
            name: kernel.kwargs[name]
            for name in ("is_mqa", "mask_value", "attn_logits_soft_cap", "mask_function", "interpret")
        },
    )
    layouts = {"q_layout": sizes.q_layout, "k_layout": sizes.k_layout, "v_layout": sizes.v_layout}
    operands = q, k, v, ids, None, lse, out_bar, delta
    _, k_bar, v_bar = splash._splash_attention_bwd_dkv(
        *operands, bq=sizes.block_q_dkv, bkv=sizes.block_kv_dkv, bkv_compute=sizes.block_kv_dkv_compute,
        mask_info=kernel.dkv_mask_info, use_fused_bwd_kernel=False, **layouts, **settings,
    )  # fmt: skip
    q_bar = splash._splash_attention_bwd_dq(
        *operands, bq=sizes.block_q_dq, bkv=sizes.block_kv_dq, mask_info=kernel.dq_mask_info, **layouts, **settings
    )
    return q_bar, k_bar, v_bar


def _by_head(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Padded: q `[B, K, group, T, H]`, k and v `[B, K, S, H]`."""
    pad = lambda x: jnp.pad(x, ((0, 0), (0, _missing(x.shape[1])), (0, 0), (0, 0)))  # noqa: E731
    q, k, v = map(pad, (q, k, v))
    rows, length, heads, size = q.shape
    q = q.reshape(rows, length, k.shape[2], heads // k.shape[2], size)
    return jnp.moveaxis(q, 1, 3), jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)


def _back(x: Array, shape: tuple[int, ...]) -> Array:
    return jnp.moveaxis(x, 3, 1)[:, : shape[1]].reshape(shape)


def _pad_ids(ids: splash.SegmentIds) -> splash.SegmentIds:
    pad = lambda x, value: jnp.pad(x, ((0, 0), (0, _missing(x.shape[1]))), constant_values=value)  # noqa: E731
    return splash.SegmentIds(pad(ids.q, 0), pad(ids.kv, -1))


def _missing(length: int) -> int:
    return -length % BLOCKS[-1]
