"""Where the sampler's arrays lie on a mesh: rows over the batch axes, heads over `tensor`, prompts over `context`."""

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from videoauto_jax.models.partition import batch_axes, dividing_axis

Tree = TypeVar("Tree")


def keep(tree: Tree) -> Tree:
    """Keeps arrays where they belong on the mesh in use, so that what leaves one program fits the next.

    Told apart by their axes: prompts' keys `[L, B, P, K, H]` and their scales `[L, B, P, K]`, branches' own keys
    `[L, B, G, R, K, H]`, and what has rows first. Nothing happens without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, _spec(x, mesh)), tree)


def _spec(x: jax.Array, mesh: jax.sharding.AbstractMesh) -> PartitionSpec:
    rows = lambda axis: batch_axes(mesh, x.shape[axis]) or None  # noqa: E731
    if x.ndim < 4:
        return PartitionSpec(*[rows(axis) if axis == 0 else None for axis in range(x.ndim)])
    heads = dividing_axis(mesh, "tensor", x.shape[3 if x.ndim < 6 else 4])
    if x.ndim == 6:
        return PartitionSpec(None, rows(1), None, None, heads)
    return PartitionSpec(None, rows(1), dividing_axis(mesh, "context", x.shape[2]), heads)
