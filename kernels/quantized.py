"""Key/value caches in 8 bits: half the bytes of a decoding step that does nothing but read them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """`values * scale`, with one scale for each token and head.

    A vector of `H` numbers shares its scale, so that scores and outputs are scaled once per key, not once per number.

    Attributes:
        values: int8 or float8_e4m3fn.
        scale: what the values are multiplied with.
    """

    values: Num[Array, "... S K H"]
    scale: Float[Array, "... S K"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array this stands for."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """What is stored."""
        return self.values.dtype


def quantize(x: Float[Array, "... S K H"], dtype: DTypeLike) -> Quantized:
    """Rounds to `dtype` ("int8" or "float8_e4m3fn") such that each vector's largest number uses the whole range."""
    largest = _LARGEST[jnp.dtype(dtype).name]
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / largest
    scaled = x / jnp.where(scale > 0, scale, 1.0)[..., None]
    return Quantized((jnp.round(scaled) if jnp.dtype(dtype) == jnp.int8 else scaled).astype(dtype), scale)


def stored(x: Float[Array, "... S K H"], like: Array | Quantized) -> Array | Quantized:
    """New keys or values as a cache keeps them."""
    return quantize(x, like.dtype) if isinstance(like, Quantized) else x.astype(like.dtype)


def dequantize(x: Array | Quantized, dtype: DTypeLike) -> Float[Array, "... S K H"]:
    """The array that `x` stands for; a plain one as it is."""
    return (x.values.astype(jnp.float32) * x.scale[..., None]).astype(dtype) if isinstance(x, Quantized) else x
