"""The one decoder of all families: grouped queries, stacked and scanned layers; DeepStack features enter the first.

Qwen2.5 has biases on q, k and v; Qwen3 has norms on q and k, and an MLP or a mixture of experts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from videoauto_jax.models.config import TextConfig
from videoauto_jax.models.experts import MixtureOfExperts
from videoauto_jax.models.layers import EMBED_INIT, Projection, rms_norm, stack
from videoauto_jax.models.partition import constrain
from videoauto_jax.models.rotary import Rotary, rotate, text_rotary

Attention = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""`(q, k, v, cache of this layer) -> (out, what the layer yields)`, with q `[B, T, N, H]` and k, v `[B, T, K, H]`."""


class Mlp(nnx.Module):
    """SwiGLU (HF `Qwen2MLP`, `Qwen3VLTextMLP`)."""

    def __init__(self, config: TextConfig, **options):
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate = Projection("...d,df->...f", (width, hidden), **options)
        self.up = Projection("...d,df->...f", (width, hidden), **options)
        self.down = Projection("...f,fd->...d", (hidden, width), **options)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class SelfAttention(nnx.Module):
    """Grouped-query projections (HF `Qwen2_5_VLAttention`, `Qwen3VLTextAttention`); attention itself is passed in."""

    def __init__(self, config: TextConfig, **options):
        width, heads, kv_heads, size = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        project = lambda count: Projection(  # noqa: E731
            "...d,dnh->...nh", (width, count, size), bias_shape=(count, size) if config.qkv_bias else None, **options
        )
        self.q, self.k, self.v = project(heads), project(kv_heads), project(kv_heads)
        self.o = Projection("...nh,nhd->...d", (heads, size, width), **options)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = rms_norm(size, config.norm_eps, **options)
            self.k_norm = rms_norm(size, config.norm_eps, **options)

    def __call__(self, x: Array, rotary: Rotary, attention: Attention, cache: Any) -> tuple[Array, Any]:
        q, k = self.q(x), self.k(x)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        out, yielded = attention(rotate(q, rotary), rotate(k, rotary), self.v(x), cache)
        return self.o(out), yielded


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP or experts (HF `Qwen2_5_VLDecoderLayer`, `Qwen3VLTextDecoderLayer`)."""

    def __init__(self, config: TextConfig, **options):
        self.attention_norm = rms_norm(config.hidden_size, config.norm_eps, **options)
        self.attention = SelfAttention(config, **options)
        self.mlp_norm = rms_norm(config.hidden_size, config.norm_eps, **options)
        self.mlp = MixtureOfExperts(config, **options) if config.experts else Mlp(config, **options)

    def __call__(self, x: Array, rotary: Rotary, attention: Attention, cache: Any) -> tuple[Array, Any]:
        out, yielded = self.attention(self.attention_norm(x), rotary, attention, cache)
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), yielded


class Decoder(nnx.Module):
    """Token embedding, scanned layers and final norm (HF `Qwen2_5_VLTextModel`, `Qwen3VLTextModel`)."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        options = {"dtype": dtype, "param_dtype": param_dtype}
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, **options, embedding_init=EMBED_INIT, rngs=rngs)
        self.layers = stack(lambda keys: DecoderLayer(config, **options, rngs=keys), config.num_layers, rngs)
        self.norm = rms_norm(config.hidden_size, config.norm_eps, **options, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "3 B T"],
        attention: Attention,
        *,
        caches: Any = None,
        deepstack: tuple[Float[Array, "K M D"], Int[Array, "B T"]] | None = None,
        token_axis: str | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs every layer.

        Args:
            x: input embeddings.
            positions: M-RoPE positions of the tokens.
            attention: called in each layer with its projections and its slice of `caches`.
            caches: pytree with a leading layer axis, or None.
            deepstack: features added after each of the first `K` layers, and the row that each slot takes (-1: none);
                `K` may be 0.
            token_axis: mesh axis over which tokens are split.
            remat: recompute a layer's activations in the backward pass.

        Returns:
            Normalised hidden states, and what `attention` yielded with a leading layer axis.
        """
        config = self.config
        rotary = text_rotary(positions, config)
        graph, weights = nnx.split(self.layers)
        taps = 0 if deepstack is None else len(deepstack[0])

        def layer(x: Array, slices: tuple) -> tuple[Array, Any]:
            index, weight, cache = slices
            x, yielded = nnx.merge(graph, weight)(constrain(x, token_axis=token_axis), rotary, attention, cache)
            return (_add_deepstack(x, index, *deepstack) if taps else x), yielded

        body = jax.checkpoint(layer) if remat else layer
        x, yielded = jax.lax.scan(body, x, (jnp.arange(config.num_layers), weights, caches))
        return self.norm(x), yielded


def _add_deepstack(x: Array, layer: Array, features: Float[Array, "K M D"], index: Int[Array, "B T"]) -> Array:
    """Adds the layer's DeepStack features at the visual slots (HF `_deepstack_process`)."""

    def add(x: Array) -> Array:
        chosen = features[layer][jnp.maximum(index, 0)]
        return x + jnp.where(index[..., None] >= 0, chosen, 0).astype(x.dtype)

    return jax.lax.cond(layer < features.shape[0], add, lambda x: x, x)
