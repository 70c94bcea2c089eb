"""Where the sampler's arrays lie on a mesh: rows over the batch axes, heads over `tensor`, prompts over `context`."""

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from videoauto_jax.models.partition import batch_axes, dividing_axis

Tree = TypeVar("Tree")


def keep(tree: Tree) -> Tree:
    """Keeps arrays where they belong on the mesh in use, so that what leaves one program fits the next.

    Arrays of three axes or fewer, and logits, are split by their first axis; caches of five and six by their second, by
    their heads, and (five) by their keys. Nothing happens without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, _spec(x, mesh)), tree)


def _spec(x: jax.Array, mesh: jax.sharding.AbstractMesh) -> PartitionSpec:
    rows = lambda axis: batch_axes(mesh, x.shape[axis]) or None  # noqa: E731
    heads = lambda: dividing_axis(mesh, "tensor", x.shape[-2])  # noqa: E731
    if x.ndim == 5:
        return PartitionSpec(None, rows(1), dividing_axis(mesh, "context", x.shape[2]), heads(), None)
    if x.ndim == 6:
        return PartitionSpec(None, rows(1), None, None, heads(), None)
    return PartitionSpec(*[rows(axis) if axis == 0 else None for axis in range(x.ndim)])
