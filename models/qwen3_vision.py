"""The Qwen3-VL vision tower: learned positions interpolated to each grid, and taps for DeepStack."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videoauto_jax.models.config import Qwen3VisionConfig
from videoauto_jax.models.inputs import VisionInputs
from videoauto_jax.models.layers import EMBED_INIT, Projection, layer_norm, stack
from videoauto_jax.models.rotary import Rotary, vision_rotary
from videoauto_jax.models.vision import VisionAttention, VisionFeatures, normalised, segment_attention


class VisionMlp(nnx.Module):
    """Two linear maps around tanh-GELU (HF `Qwen3VLVisionMLP`)."""

    def __init__(self, config: Qwen3VisionConfig, **options):
        width, hidden = config.hidden_size, config.intermediate_size
        self.fc1 = Projection("...d,df->...f", (width, hidden), bias_shape=(hidden,), **options)
        self.fc2 = Projection("...f,fd->...d", (hidden, width), bias_shape=(width,), **options)

    def __call__(self, x: Float[Array, "Q Dv"]) -> Float[Array, "Q Dv"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class VisionBlock(nnx.Module):
    """Pre-norm block (HF `Qwen3VLVisionBlock`)."""

    def __init__(self, config: Qwen3VisionConfig, **options):
        self.norm1 = layer_norm(config.hidden_size, **options)
        self.attention = VisionAttention(config, **options)
        self.norm2 = layer_norm(config.hidden_size, **options)
        self.mlp = VisionMlp(config, **options)

    def __call__(self, x: Float[Array, "Q Dv"], rotary: Rotary, vision: VisionInputs) -> Float[Array, "Q Dv"]:
        attend = partial(segment_attention, segments=vision.segment_ids, bound=vision.segment_bound)
        x = x + self.attention(self.norm1(x), rotary, attend)
        return x + self.mlp(self.norm2(x))


class DeepStackTower(nnx.Module):
    """Patches to features (HF `Qwen3VLVisionModel` up to, and without, its mergers)."""

    def __init__(self, config: Qwen3VisionConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        options = {"dtype": dtype, "param_dtype": param_dtype}
        width = config.hidden_size
        self.patch_embed = Projection("qc,cd->qd", (config.patch_dim, width), bias_shape=(width,), **options, rngs=rngs)
        self.position_embed = nnx.Embed(
            config.num_position_embeddings, width, **options, embedding_init=EMBED_INIT, rngs=rngs
        )
        self.blocks = stack(lambda keys: VisionBlock(config, **options, rngs=keys), config.depth, rngs)

    def __call__(self, vision: VisionInputs, *, remat: bool = False) -> VisionFeatures:
        """Features of every patch, padding included (whose values mean nothing)."""
        corners = self.position_embed.embedding[vision.position_index]
        places = jnp.einsum("cq,cqd->qd", vision.position_weight, corners)
        pixels = normalised(vision.patches, self.config)
        x = self.patch_embed(pixels.astype(self.dtype)) + places.astype(self.dtype)
        rotary = vision_rotary(vision.rotary_ids, self.config.head_dim)
        graph, weights = nnx.split(self.blocks)
        taps = self.config.deepstack_layers

        def block(carry: tuple[Array, Array], slices: tuple) -> tuple[tuple[Array, Array], None]:
            x, kept = carry
            index, weight = slices
            x = nnx.merge(graph, weight)(x, rotary, vision)
            for row, tap in enumerate(taps):
                kept = kept.at[row].set(jnp.where(index == tap, x, kept[row]))
            return (x, kept), None

        start = x, jnp.zeros((len(taps), *x.shape), x.dtype)
        body = jax.checkpoint(block) if remat else block
        (last, deepstack), _ = jax.lax.scan(body, start, (jnp.arange(self.config.depth), weights))
        return VisionFeatures(last, deepstack)
