"""Kernels on a mesh: each device runs its own rows and heads.

XLA cannot see into a kernel and would gather its operands on every device, silently; `shard_map` says how to split it.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

ROWS, HEADS = ("data", "fsdp", "expert"), ("tensor",)
"""Mesh axes over which rows and heads are split."""


def over_mesh(kernel: Callable, operands: tuple, axes: tuple[str, ...], results: tuple[str, ...]) -> Any:
    """Calls `kernel(*operands)`, split over the mesh in use if it has automatic axes.

    Args:
        kernel: attention over whole rows and heads.
        operands: arrays, or pytrees of arrays alike.
        axes: what each operand's axes are, one letter each: "B" rows, "K" heads, "." whole; rest and "" whole. The
            first operand's rows and the second's heads, which are the fewest, decide what the mesh divides.
        results: the same for the kernel's results, a tuple.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return kernel(*operands)
    split = {
        "B": _dividing(mesh, ROWS, operands[0].shape[axes[0].index("B")]),
        "K": _dividing(mesh, HEADS, operands[1].shape[axes[1].index("K")]),
        ".": None,
    }
    specs, out_specs = (tuple(PartitionSpec(*map(split.get, each)) for each in group) for group in (axes, results))
    return jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)(*operands)


def _dividing(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Of those mesh axes the ones that split a dimension most; None if it stays whole."""
    present = [axis for axis in axes if mesh.shape.get(axis, 1) > 1]
    subsets = [some for count in range(len(present) + 1) for some in itertools.combinations(present, count)]
    parts = lambda some: math.prod(mesh.shape[axis] for axis in some)  # noqa: E731
    return max((some for some in subsets if size % parts(some) == 0), key=parts) or None
