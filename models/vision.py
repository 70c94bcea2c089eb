"""What both vision towers share: their results, attention within segments, and the merger of four patches.

A tower is frozen in training and its output is kept and reused by every later pass of a prompt; the mergers are
trained and run in each pass.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from videoauto_jax.kernels import overlapping
from videoauto_jax.kernels.attention import self_attention
from videoauto_jax.kernels.sharded import ROW_AXES
from videoauto_jax.models.config import VisionConfig
from videoauto_jax.models.layers import Projection
from videoauto_jax.models.partition import constrain
from videoauto_jax.models.rotary import Rotary, rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionFeatures:
    """What the frozen tower makes of packed patches.

    Attributes:
        last: output of the last block.
        deepstack: outputs of the `K` blocks that feed DeepStack; none of them in Qwen2.5-VL.
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


def normalised(patches: UInt8[Array, "Q C2pp"], config: VisionConfig) -> Float[Array, "Q C2pp"]:
    """Float32 pixels with the checkpoint's mean and deviation per channel (HF fuses rescaling and normalising so)."""
    mean, std = (
        jnp.repeat(255 * jnp.asarray(values, jnp.float32), config.patch_dim // config.in_channels)
        for values in (config.image_mean, config.image_std)
    )
    return (patches.astype(jnp.float32) - mean) / std


class VisionAttention(nnx.Module):
    """Full attention within each segment (HF `Qwen2_5_VLVisionAttention`, `Qwen3VLVisionAttention`)."""

    def __init__(self, config: VisionConfig, **options):
        width, heads, size = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = Projection("qd,dcnh->qcnh", (width, 3, heads, size), bias_shape=(3, heads, size), **options)
        self.proj = Projection("qnh,nhd->qd", (heads, size, width), bias_shape=(width,), **options)

    def __call__(
        self, x: Float[Array, "Q Dv"], rotary: Rotary, attend: Callable[[Array, Array, Array], Array]
    ) -> Float[Array, "Q Dv"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 1, 0)
        return self.proj(attend(rotate(q, rotary), rotate(k, rotary), v))


def segment_attention(
    q: Float[Array, "Q N H"],
    k: Float[Array, "Q N H"],
    v: Float[Array, "Q N H"],
    segments: Int[Array, "Q"],
    bound: int,
) -> Float[Array, "Q N H"]:
    """Each patch attends to those of its segment, of which there are at most `bound` (static).

    On a mesh the packed patches are cut into overlapping rows, one for each device of the batch axes and of `context`.
    """
    within = partial(self_attention, causal=False, segment_bound=bound, forward_only=True)
    count = overlapping.pieces(len(q), bound)
    if count == 1:
        return within(q[None], k[None], v[None], segments[None])[0]
    rows = (constrain(overlapping.cut(x, count, bound), axes=ROW_AXES) for x in (q, k, v, segments))
    return overlapping.join(within(*rows), bound)


class PatchMerger(nnx.Module):
    """2x2 patches to one decoder token (HF `Qwen2_5_VLPatchMerger`, `Qwen3VLVisionPatchMerger`).

    A main merger normalises each patch before they are joined, DeepStack's mergers the joined vector.

    Args:
        norm: makes the normalisation of a width.
        join_first: join before normalising.
    """

    def __init__(self, config: VisionConfig, norm: Callable[..., nnx.Module], *, join_first: bool, **options):
        self.joined, self.join_first = config.hidden_size * config.merge_size**2, join_first
        self.norm = norm(self.joined if join_first else config.hidden_size, **options)
        self.fc1 = Projection("...d,df->...f", (self.joined, self.joined), bias_shape=(self.joined,), **options)
        width = config.out_hidden_size
        self.fc2 = Projection("...f,fd->...d", (self.joined, width), bias_shape=(width,), **options)

    def __call__(self, x: Float[Array, "Q Dv"]) -> Float[Array, "M D"]:
        x = self.norm(x.reshape(-1, self.joined)) if self.join_first else self.norm(x).reshape(-1, self.joined)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
