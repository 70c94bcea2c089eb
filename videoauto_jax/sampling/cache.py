"""Keys and values of prompts, computed once and read by all branches.

Prompts go through the model in pieces: the whole of a short one, the parts of a long one one after the other, or what
follows a prefix that another prompt has left. A piece attends to what is already there (`offset` tokens) and to itself.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels import context_parallel
from videoauto_jax.kernels.attention import attend, merge
from videoauto_jax.kernels.mask import packed, shared
from videoauto_jax.kernels.quantized import Quantized, dequantize, quantize
from videoauto_jax.kernels.sharded import context_devices
from videoauto_jax.models.inputs import ModelInputs, VisionInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionEmbeddings, VisionFeatures
from videoauto_jax.sampling.placing import keep


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCache:
    """Prompts on the device.

    Attributes:
        k, v: per layer, plain or in 8 bits.
        length: tokens of each prompt; what lies behind them means nothing.
        next_position: M-RoPE position of the first generated token.
    """

    k: Float[Array, "L B P K H"] | Quantized
    v: Float[Array, "L B P K H"] | Quantized
    length: Int[Array, "B"]
    next_position: Int[Array, "B"]

    @property
    def capacity(self) -> int:
        """Most tokens of a prompt, `P`."""
        return self.k.shape[2]


@jax.jit
def embed_vision(
    model: QwenVL, vision: VisionInputs | None, features: VisionFeatures | None = None
) -> VisionEmbeddings:
    """What fills the visual slots of a batch of prompts; `features` of the frozen tower spare running it."""
    return model.merge_vision(model.encode_vision(vision) if features is None else features)


@partial(jax.jit, static_argnames=("capacity", "dtype"), donate_argnames="before")
def prefill(
    model: QwenVL,
    before: PromptCache | None,
    inputs: ModelInputs,
    offset: Int[Array, "B"],
    next_position: Int[Array, "B"],
    embeddings: VisionEmbeddings | None = None,
    *,
    capacity: int,
    dtype: str | None = None,
) -> tuple[PromptCache, Float[Array, "B V"]]:
    """Runs a piece of each prompt: the cache with it, and the logits of the token behind it.

    Args:
        model: the model; an argument, so that new weights are used without recompiling.
        before: what comes before the pieces, donated; None if that is nothing.
        inputs: the pieces, right-padded; `inputs.vision` is not read.
        offset: tokens before each piece. `offset + T` must not exceed the capacity.
        next_position: position that follows each prompt.
        embeddings: what `inputs.vision_index` points into.
        capacity: `P` of the result, the same as that of `before`.
        dtype: int8 or float8_e4m3fn to keep keys and values in 8 bits; None for the model's own. A piece attends to
            itself before it is rounded.
    """
    segments = inputs.segment_ids
    earlier = None if before is None else (before.k, before.v)
    seen = shared(segments > 0, jnp.arange(capacity) < offset[:, None], aligned=True)
    order = context_parallel.row_order(segments.shape[1])

    def attention(q: Array, k: Array, v: Array, cache: tuple[Array, Array] | None) -> tuple[Array, tuple]:
        kept = None if cache is None else tuple(dequantize(x, q.dtype) for x in cache)
        if order is None:
            own = attend(q, k, v, packed(segments, causal=True, aligned=True), forward_only=True)
            out = own[0] if kept is None else merge(attend(q, *kept, seen, forward_only=True), own)[0]
        else:
            out, (k, v) = context_parallel.prefix_attention(q, k, v, segments, kept, seen)
        return out, ((k, v) if dtype is None else (quantize(k, dtype), quantize(v, dtype)))

    hidden, new = model.forward(inputs, attention, embeddings=embeddings, caches=earlier, order=order)
    count = jnp.sum(segments > 0, axis=1)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    k, v = jax.tree.map(partial(extend, capacity=capacity), new) if before is None else _behind(earlier, new, offset)
    return keep(PromptCache(k, v, offset + count, next_position)), model.logits(last)


def _behind(old: tuple, new: tuple, offset: Int[Array, "B"]) -> tuple:
    """`new` behind the first `offset` tokens of `old`."""
    put = _chosen if context_devices() > 1 else _updated
    return jax.tree.map(partial(put, offset=offset), old, new)


def _updated(old: Float[Array, "L B P ..."], new: Float[Array, "L B T ..."], offset: Int[Array, "B"]) -> Array:
    put = lambda row, piece, at: jax.lax.dynamic_update_slice_in_dim(row, piece, at, axis=1)  # noqa: E731
    return jax.vmap(put, in_axes=(1, 1, 0), out_axes=1)(old, new, offset)


def _chosen(old: Float[Array, "L B P ..."], new: Float[Array, "L B T ..."], offset: Int[Array, "B"]) -> Array:
    """The same token by token: to update a slice of what is split along its tokens, XLA would gather all of it."""
    source = jnp.arange(old.shape[2]) - offset[:, None]
    index, fresh = (
        x.reshape(1, *x.shape, *[1] * (old.ndim - 3)) for x in (source, (source >= 0) & (source < new.shape[2]))
    )
    return jnp.where(fresh, jnp.take_along_axis(new, jnp.clip(index, 0, new.shape[2] - 1), axis=2), old)


@jax.jit
def copy_prompts(cache: PromptCache, rows: Int[Array, "r"]) -> PromptCache:
    """Some prompts of a cache, in a cache of their own."""
    k, v = jax.tree.map(lambda x: jnp.take(x, rows, axis=1, mode="clip"), (cache.k, cache.v))
    return PromptCache(k, v, *(jnp.take(x, rows, mode="clip") for x in (cache.length, cache.next_position)))


def extend(x: Array, capacity: int) -> Array:
    """A cache's keys or values with room for longer prompts."""
    return jnp.pad(x, [(0, 0), (0, 0), (0, capacity - x.shape[2]), *[(0, 0)] * (x.ndim - 3)])
