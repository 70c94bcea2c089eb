"""Kernels on a mesh: each device runs its own rows and heads.

XLA cannot see into a kernel and would gather its operands on every device, silently; `shard_map` says how to split it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

ROWS, HEADS = ("data", "fsdp"), ("tensor",)
"""Mesh axes over which rows and heads are split."""


def over_mesh(kernel: Callable, *operands: Any, head_axes: tuple[int | None, ...], results: Any) -> Any:
    """Calls `kernel(*operands)`, split over the mesh in use if it has automatic axes.

    Args:
        kernel: attention over whole rows and heads.
        operands: arrays or pytrees of arrays with rows as their first axis; the second one's heads are the fewest.
        head_axes: which axis of each operand is its heads.
        results: the same for the kernel's results, a pytree.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return kernel(*operands)
    rows = _dividing(mesh, ROWS, operands[0].shape[0])
    heads = _dividing(mesh, HEADS, operands[1].shape[head_axes[1]])
    spec = lambda axis: PartitionSpec(rows, *[None] * (axis - 1), heads) if axis else PartitionSpec(rows)  # noqa: E731
    places = tuple(map(spec, head_axes)), jax.tree.map(spec, results)
    return jax.shard_map(kernel, mesh=mesh, in_specs=places[0], out_specs=places[1], check_vma=False)(*operands)


def _dividing(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Those mesh axes, if their product divides a dimension; else the dimension stays whole."""
    present = tuple(axis for axis in axes if axis in mesh.axis_names)
    return present if present and size % math.prod(mesh.shape[axis] for axis in present) == 0 else None
