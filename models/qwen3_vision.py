"""The Qwen3-VL vision tower (frozen in training) and its patch mergers (trained), apart from each other.

The tower's output is kept and reused by every later pass of a prompt; the mergers run in each pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videoauto_jax.kernels.attention import self_attention
from videoauto_jax.models.config import VisionConfig
from videoauto_jax.models.inputs import VisionInputs
from videoauto_jax.models.layers import EMBED_INIT, Projection, layer_norm, stack
from videoauto_jax.models.rotary import Rotary, rotate, vision_rotary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionFeatures:
    """What the frozen tower makes of packed patches.

    Attributes:
        last: output of the last block.
        deepstack: outputs of the `K` blocks that feed DeepStack.
    """

    last: Float[Array, "Q Dv"]
    deepstack: Float[Array, "K Q Dv"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionEmbeddings:
    """Merged features in the decoder's width; four patches make one row.

    Attributes:
        slots: embeddings that replace the placeholders' own.
        deepstack: what is added after the decoder's first `K` layers.
    """

    slots: Float[Array, "M D"]
    deepstack: Float[Array, "K M D"]


class VisionAttention(nnx.Module):
    """Full attention within each segment (HF `Qwen3VLVisionAttention`)."""

    def __init__(self, config: VisionConfig, **options):
        width, heads, size = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = Projection("qd,dcnh->qcnh", (width, 3, heads, size), bias_shape=(3, heads, size), **options)
        self.proj = Projection("qnh,nhd->qd", (heads, size, width), bias_shape=(width,), **options)

    def __call__(self, x: Float[Array, "Q Dv"], rotary: Rotary, vision: VisionInputs) -> Float[Array, "Q Dv"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 1, 0)
        q, k = rotate(q, rotary), rotate(k, rotary)
        out = self_attention(
            q[None], k[None], v[None], vision.segment_ids[None], causal=False, segment_bound=vision.segment_bound
        )
        return self.proj(out[0])


class VisionMlp(nnx.Module):
    """Two linear maps around tanh-GELU (HF `Qwen3VLVisionMLP`)."""

    def __init__(self, config: VisionConfig, **options):
        width, hidden = config.hidden_size, config.intermediate_size
        self.fc1 = Projection("...d,df->...f", (width, hidden), bias_shape=(hidden,), **options)
        self.fc2 = Projection("...f,fd->...d", (hidden, width), bias_shape=(width,), **options)

    def __call__(self, x: Float[Array, "Q Dv"]) -> Float[Array, "Q Dv"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class VisionBlock(nnx.Module):
    """Pre-norm block (HF `Qwen3VLVisionBlock`)."""

    def __init__(self, config: VisionConfig, **options):
        self.norm1 = layer_norm(config.hidden_size, **options)
        self.attention = VisionAttention(config, **options)
        self.norm2 = layer_norm(config.hidden_size, **options)
        self.mlp = VisionMlp(config, **options)

    def __call__(self, x: Float[Array, "Q Dv"], rotary: Rotary, vision: VisionInputs) -> Float[Array, "Q Dv"]:
        x = x + self.attention(self.norm1(x), rotary, vision)
        return x + self.mlp(self.norm2(x))


class VisionTower(nnx.Module):
    """Patches to features (HF `Qwen3VLVisionModel` up to, and without, its mergers)."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
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
        pixels = (vision.patches.astype(jnp.float32) - 127.5) / 127.5
        corners = self.position_embed.embedding[vision.position_index]
        places = jnp.einsum("cq,cqd->qd", vision.position_weight, corners)
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


class PatchMerger(nnx.Module):
    """2x2 patches to one decoder token (HF `Qwen3VLVisionPatchMerger`).

    The main merger normalises each patch before they are joined, DeepStack's mergers the joined vector.
    """

    def __init__(self, config: VisionConfig, *, join_first: bool, **options):
        self.joined, self.join_first = config.hidden_size * config.merge_size**2, join_first
        self.norm = layer_norm(self.joined if join_first else config.hidden_size, **options)
        self.fc1 = Projection("...d,df->...f", (self.joined, self.joined), bias_shape=(self.joined,), **options)
        width = config.out_hidden_size
        self.fc2 = Projection("...f,fd->...d", (self.joined, width), bias_shape=(width,), **options)

    def __call__(self, x: Float[Array, "Q Dv"]) -> Float[Array, "M D"]:
        x = self.norm(x.reshape(-1, self.joined)) if self.join_first else self.norm(x).reshape(-1, self.joined)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
