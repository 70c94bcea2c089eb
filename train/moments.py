"""Adam whose moments are kept small: in bfloat16, or in 8 bits with a scale per block (block-wise as arXiv 2110.02861).

A moment moves by a thousandth of itself per step; rounded to the nearest of so few values it would stand still. So it
is rounded up or down at random, with the probabilities that make the expectation exact, from a key that depends on the
step and the parameter only: the same run gives the same bits.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

MomentType = Literal["float32", "bfloat16", "int8"]

BLOCK = 128
"""Consecutive entries of the last axis that share a scale."""


class Blocks(NamedTuple):
    """A moment in 8 bits.

    Attributes:
        codes: int8 for the first moment, uint8 for the second; the shape of the parameter.
        scales: greatest magnitude of each block, `[..., blocks]`.
    """

    codes: Int[Array, "..."]
    scales: Float[Array, "..."]


class MomentState(NamedTuple):
    """State of `scale_by_small_adam`: steps so far, and both moments in their stored form."""

    count: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates


def scale_by_small_adam(b1: float, b2: float, eps: float, moments: MomentType) -> optax.GradientTransformation:
    """Adam's direction (arXiv 1412.6980), bias correction included, with moments stored as `moments`."""

    def init(params) -> MomentState:
        zeros = lambda signed: jax.tree.map(lambda leaf: _store_zeros(leaf, moments, signed), params)  # noqa: E731
        return MomentState(jnp.zeros((), jnp.int32), zeros(True), zeros(False))

    def update(grads, state: MomentState, params=None):
        del params
        count = state.count + 1
        leaves, tree = jax.tree.flatten(grads)
        stored = zip(leaves, tree.flatten_up_to(state.mu), tree.flatten_up_to(state.nu))
        results = [one(grad, mu, nu, count, number) for number, (grad, mu, nu) in enumerate(stored)]
        direction, mu, nu = (tree.unflatten(column) for column in zip(*results))
        return direction, MomentState(count, mu, nu)

    def one(grad: Array, mu, nu, count: Array, number: int) -> tuple:
        first = b1 * load(mu, signed=True) + (1 - b1) * grad
        second = b2 * load(nu, signed=False) + (1 - b2) * jnp.square(grad)
        steps = count.astype(jnp.float32)
        direction = first / (1 - b1**steps) / (jnp.sqrt(second / (1 - b2**steps)) + eps)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(number), count))
        return direction, store(first, moments, keys[0], signed=True), store(second, moments, keys[1], signed=False)

    return optax.GradientTransformation(init, update)


def store(values: Float[Array, "..."], moments: MomentType, key: Key[Array, ""], *, signed: bool):
    """A moment in its stored form, rounded at random."""
    if moments == "float32":
        return values
    if moments == "bfloat16":
        return _round_bfloat16(values, key)
    blocks = _blocked(values)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    share = jnp.abs(blocks) / jnp.where(scales == 0, 1, scales)[..., None]
    codes = _round_codes(share, key, *_companding(signed))
    if signed:
        codes = jnp.where(blocks < 0, -codes, codes)
    return Blocks(_unblocked(codes, values.shape).astype(jnp.int8 if signed else jnp.uint8), scales)


def load(stored, *, signed: bool) -> Float[Array, "..."]:
    """A stored moment as float32."""
    if not isinstance(stored, Blocks):
        return stored.astype(jnp.float32)
    power, levels = _companding(signed)
    codes = _blocked(stored.codes.astype(jnp.float32))
    values = jnp.sign(codes) * (jnp.abs(codes) / levels) ** power * stored.scales[..., None]
    return _unblocked(values, stored.codes.shape)


def _companding(signed: bool) -> tuple[int, int]:
    """(power, levels): value = (code / levels) ** power of the block's greatest; second moments span more decades."""
    return (2, 127) if signed else (4, 255)


def _round_codes(share: Float[Array, "..."], key: Key[Array, ""], power: int, levels: int) -> Float[Array, "..."]:
    below = jnp.floor(levels * share ** (1 / power))
    low, high = (below / levels) ** power, ((below + 1) / levels) ** power
    up = jax.random.uniform(key, share.shape) < (share - low) / (high - low)
    codes = jnp.clip(below + up, 0, levels)
    # A second moment rounded to nothing would leave its step undivided.
    return jnp.where((share > 0) & (power == 4), jnp.maximum(codes, 1), codes)


def _round_bfloat16(values: Float[Array, "..."], key: Key[Array, ""]) -> Array:
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    noise = jax.random.bits(key, values.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(values), rounded, values).astype(jnp.bfloat16)


def _store_zeros(leaf: Array, moments: MomentType, signed: bool):
    if moments != "int8":
        return jnp.zeros_like(leaf, dtype=moments)
    scales = jnp.max(_blocked(jnp.zeros_like(leaf, dtype=jnp.float32)), axis=-1)
    return Blocks(jnp.zeros_like(leaf, dtype=jnp.int8 if signed else jnp.uint8), scales)


def _blocked(values: Array) -> Array:
    """`[..., blocks, BLOCK]`; a last axis that BLOCK does not divide is one block."""
    values = values[None] if values.ndim == 0 else values
    size = BLOCK if values.shape[-1] % BLOCK == 0 else values.shape[-1]
    return values.reshape(*values.shape[:-1], -1, size)


def _unblocked(blocks: Array, shape: tuple[int, ...]) -> Array:
    return blocks.reshape(shape)
