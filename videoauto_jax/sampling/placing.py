"""Where the sampler's arrays lie on a mesh: rows over the batch axes, heads over `tensor`, prompts over `context`.

And weights: split over those axes only that compute with a part of them, so that no step has to gather any.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from videoauto_jax.kernels.quantized import Quantized
from videoauto_jax.models.partition import batch_axes, dividing_axis, parameter_spec
from videoauto_jax.models.qwen_vl import QwenVL

Tree = TypeVar("Tree")
Places = tuple[tuple[Sharding, Sharding, np.dtype], ...]
"""Of each array: where it lies, where it is to lie, and its dtype there."""


def rollout_weights(model: QwenVL) -> QwenVL:
    """The model with the weights that every decoding step reads in the layout `rollout` and in the dtype in which they
    are multiplied. What is so already is not copied; the results are the same to the bit.

    The vision tower and the mergers, which run once for each prompt, stay as they are.
    """
    graph, state, rest = nnx.split(model, nnx.Param, ...)
    moved = {}
    for path, leaf in nnx.to_flat_state(state):
        name, array = "/".join(map(str, path)), leaf.get_value()
        if name.startswith(("text/", "head/")):
            place = _rollout_place(name, array, np.dtype(model.text.dtype))
            if place != (array.sharding, array.sharding, array.dtype):
                moved[path] = array, place
    if not moved:
        return model
    arrays, places = zip(*moved.values())
    new = dict(zip(moved, _mover(places)(arrays)))
    copy = jax.tree.map(lambda leaf: leaf, state)
    for path, leaf in nnx.to_flat_state(copy):
        if path in new:
            leaf.set_value(new[path])
    return nnx.merge(graph, copy, rest)


def _rollout_place(name: str, array: jax.Array, dtype: np.dtype) -> tuple[Sharding, Sharding, np.dtype]:
    here = there = array.sharding
    if isinstance(here, NamedSharding):
        there = NamedSharding(here.mesh, parameter_spec(name, array.shape, here.mesh, "rollout"))
    return here, there, array.dtype if name.endswith("/scale") else dtype  # norms compute with what is stored


@functools.lru_cache(maxsize=8)
def _mover(places: Places) -> Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]]:
    """The identity, but for places and dtypes. Rounded before it is sent, which halves what is sent."""

    def move(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rounded = (x.astype(dtype) for x, (*_, dtype) in zip(arrays, places))
        return tuple(jax.lax.with_sharding_constraint(x, here) for x, (here, *_) in zip(rounded, places))

    return jax.jit(move, out_shardings=tuple(there for _, there, _ in places))


def keep(tree: Tree) -> Tree:
    """Keeps arrays where they belong on the mesh in use, so that what leaves one program fits the next.

    Told apart by their axes: prompts' keys `[L, B, P, K, H]`, branches' own `[L, B, G, R, K, H]`, and what has rows
    first. Scales lie beside their values. Nothing happens without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return tree
    place = lambda x, spec: jax.lax.with_sharding_constraint(x, spec)  # noqa: E731

    def kept(x: jax.Array | Quantized) -> jax.Array | Quantized:
        spec = _spec(x, mesh)
        return Quantized(place(x.values, spec), place(x.scale, spec)) if isinstance(x, Quantized) else place(x, spec)

    return jax.tree.map(kept, tree, is_leaf=lambda x: isinstance(x, Quantized))


def _spec(x: jax.Array | Quantized, mesh: jax.sharding.AbstractMesh) -> PartitionSpec:
    rows = lambda axis: batch_axes(mesh, x.shape[axis]) or None  # noqa: E731
    rank = len(x.shape)
    if rank < 5:
        return PartitionSpec(*[rows(axis) if axis == 0 else None for axis in range(rank)])
    heads = dividing_axis(mesh, "tensor", x.shape[-2])
    if rank == 6:
        return PartitionSpec(None, rows(1), None, None, heads)
    return PartitionSpec(None, rows(1), dividing_axis(mesh, "context", x.shape[2]), heads)
