"""Rotary embeddings on the device."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from videoauto_jax.models.config import TextConfig

Rotary = tuple[Float[Array, "... H"], Float[Array, "... H"]]
"""Cosine and sine, float32, without a head axis."""


def text_rotary(positions: Int[Array, "3 *BT"], config: TextConfig) -> Rotary:
    """M-RoPE: each frequency turns with time, height or width.

    In blocks (HF `Qwen2_5_VLRotaryEmbedding`) the first `section[0]` turn with time, the next with height, the last
    with width. Interleaved (HF `Qwen3VLTextRotaryEmbedding`) height takes indices 1, 4, 7, … below `3 * section[1]`,
    width 2, 5, 8, … below `3 * section[2]`, time the rest.
    """
    section = config.mrope_section
    axis = np.repeat(np.arange(3), section)
    if config.mrope_interleaved:
        axis = np.zeros(config.head_dim // 2, np.int32)
        for which in (1, 2):
            axis[which : 3 * section[which] : 3] = which
    by_frequency = jnp.moveaxis(positions.astype(jnp.float32)[axis], 0, -1)
    return _cos_sin(by_frequency * _inverse_frequencies(config.head_dim, config.rope_theta))


def vision_rotary(rotary_ids: Int[Array, "Q 2"], head_dim: int) -> Rotary:
    """Axial rotary of the vision towers, frequencies by row, then by column (HF `Qwen3VLVisionRotaryEmbedding`)."""
    angles = rotary_ids.astype(jnp.float32)[..., None] * _inverse_frequencies(head_dim // 2, 10_000.0)
    return _cos_sin(angles.reshape(*rotary_ids.shape[:-1], -1))


def rotate(x: Float[Array, "... N H"], rotary: Rotary) -> Float[Array, "... N H"]:
    """Rotates each head of `x`; computed in float32, returned in x's dtype."""
    cos, sin = (part[..., None, :] for part in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos + turned * sin).astype(x.dtype)


def _inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def _cos_sin(angles: Float[Array, "... F"]) -> Rotary:
    doubled = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(doubled), jnp.sin(doubled)
