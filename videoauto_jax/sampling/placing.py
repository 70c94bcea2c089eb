"""Where the sampler's arrays lie on a mesh: rows over the batch axes, heads over `tensor`, prompts over `context`."""

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from videoauto_jax.kernels.quantized import Quantized
from videoauto_jax.models.partition import batch_axes, dividing_axis

Tree = TypeVar("Tree")


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
