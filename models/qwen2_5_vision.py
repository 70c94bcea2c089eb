"""The Qwen2.5-VL vision tower: most blocks attend within square windows of a frame, a few to the whole frame.

Patches arrive in window order (`videoauto_jax.data.windows`), so a window is as contiguous as a frame, and nothing is
permuted on the device.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from videoauto_jax.models.config import Qwen2_5VisionConfig
from videoauto_jax.models.inputs import VisionInputs
from videoauto_jax.models.layers import Projection, rms_norm, stack
from videoauto_jax.models.rotary import Rotary, vision_rotary
from videoauto_jax.models.vision import VisionAttention, VisionFeatures, normalised, segment_attention

NORM_EPS = 1e-6


class GatedMlp(nnx.Module):
    """SwiGLU with biases (HF `Qwen2_5_VLMLP`)."""

    def __init__(self, config: Qwen2_5VisionConfig, **options):
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate = Projection("...d,df->...f", (width, hidden), bias_shape=(hidden,), **options)
        self.up = Projection("...d,df->...f", (width, hidden), bias_shape=(hidden,), **options)
        self.down = Projection("...f,fd->...d", (hidden, width), bias_shape=(width,), **options)

    def __call__(self, x: Float[Array, "Q Dv"]) -> Float[Array, "Q Dv"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class WindowBlock(nnx.Module):
    """Pre-norm block (HF `Qwen2_5_VLVisionBlock`)."""

    def __init__(self, config: Qwen2_5VisionConfig, **options):
        self.window_patches = config.window_patches
        self.norm1 = rms_norm(config.hidden_size, NORM_EPS, **options)
        self.attention = VisionAttention(config, **options)
        self.norm2 = rms_norm(config.hidden_size, NORM_EPS, **options)
        self.mlp = GatedMlp(config, **options)

    def __call__(self, x: Float[Array, "Q Dv"], rotary: Rotary, vision: VisionInputs, full: Array) -> Array:
        """`full`: a boolean scalar, whether this block attends to whole frames."""
        frame = partial(segment_attention, segments=vision.segment_ids, bound=vision.segment_bound)
        window = partial(segment_attention, segments=vision.window_ids, bound=self.window_patches)
        attend = lambda q, k, v: jax.lax.cond(full, frame, window, q, k, v)  # noqa: E731
        x = x + self.attention(self.norm1(x), rotary, attend)
        return x + self.mlp(self.norm2(x))


class WindowTower(nnx.Module):
    """Patches to features (HF `Qwen2_5_VisionTransformerPretrainedModel` up to, and without, its merger)."""

    def __init__(self, config: Qwen2_5VisionConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        options = {"dtype": dtype, "param_dtype": param_dtype}
        self.patch_embed = Projection("qc,cd->qd", (config.patch_dim, config.hidden_size), **options, rngs=rngs)
        self.blocks = stack(lambda keys: WindowBlock(config, **options, rngs=keys), config.depth, rngs)

    def __call__(self, vision: VisionInputs, *, remat: bool = False) -> VisionFeatures:
        """Features of every patch, padding included (whose values mean nothing)."""
        config = self.config
        x = self.patch_embed(normalised(vision.patches, config).astype(self.dtype))
        rotary = vision_rotary(vision.rotary_ids, config.head_dim)
        graph, weights = nnx.split(self.blocks)
        full = np.isin(np.arange(config.depth), config.full_attention_layers)

        def block(x: Array, slices: tuple) -> tuple[Array, None]:
            is_full, weight = slices
            return nnx.merge(graph, weight)(x, rotary, vision, is_full), None

        last, _ = jax.lax.scan(jax.checkpoint(block) if remat else block, x, (jnp.asarray(full), weights))
        return VisionFeatures(last, jnp.zeros((0, *last.shape), last.dtype))
