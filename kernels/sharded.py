"""Kernels on a mesh: each device runs its own rows and heads.

XLA cannot see into a kernel and would gather its operands on every device, silently; `shard_map` says how to split it.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Float

from videoauto_jax.errors import BackendError

BATCH_AXES, HEADS, CONTEXT = ("data", "fsdp", "expert"), "tensor", "context"
"""Mesh axes over which rows, heads and a prompt's cached keys are split."""
ROW_AXES = (*BATCH_AXES, CONTEXT)
"""Those over which rows are split where nothing else is split over `context`."""


def over_mesh(kernel: Callable, operands: tuple, axes: tuple[str, ...], results: tuple[str, ...]) -> Any:
    """Calls `kernel(*operands)`, split over those axes of the mesh in use that are automatic.

    Axes that are manual already, inside another `shard_map`, have split the operands before.

    Args:
        kernel: attention over whole rows and heads.
        operands: arrays, or pytrees of arrays alike.
        axes: what each operand's axes are, one letter each: "B" rows, "K" heads, "P" a prompt's keys, "." whole; rest
            and "" whole. Without a "P", rows are split over `context` too. The first operand's rows and the second's
            heads, which are the fewest, decide what the mesh divides.
        results: the same for the kernel's results, a tuple.

    Raises:
        BackendError: the mesh has an explicit axis of several devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types))
    if explicit := [axis for axis, kind in kinds.items() if kind == AxisType.Explicit and mesh.shape[axis] > 1]:
        fix = "Make the mesh with AxisType.Auto, as videoauto_jax.sharding.make_mesh does, or use backend='reference'"
        raise BackendError(f"kernels are split over automatic mesh axes, and {explicit[0]!r} is explicit", fix=fix)
    if not _automatic(mesh, tuple(kinds)):
        return kernel(*operands)
    rows = BATCH_AXES if "P" in axes[1] else ROW_AXES
    split = {
        "B": dividing(mesh, rows, operands[0].shape[axes[0].index("B")]),
        "K": dividing(mesh, (HEADS,), operands[1].shape[axes[1].index("K")]),
        "P": context_axis(operands[1].shape[axes[1].index("P")]) if "P" in axes[1] else None,
    }
    spec = lambda each: PartitionSpec(*(split.get(letter) or None for letter in each))  # noqa: E731
    in_specs, out_specs = (tuple(map(spec, group)) for group in (axes, results))
    names = {axis for axis, kind in kinds.items() if kind == AxisType.Auto}
    options = {"mesh": mesh, "axis_names": names, "check_vma": False}
    return jax.shard_map(kernel, in_specs=in_specs, out_specs=out_specs, **options)(*operands)


def dividing(mesh: AbstractMesh, axes: tuple[str, ...], size: int, most: float = math.inf) -> tuple[str, ...]:
    """Of those mesh axes the ones that split a dimension into the most, but at most `most`, parts; () if into none."""
    present = _automatic(mesh, axes)
    subsets = [some for count in range(len(present) + 1) for some in itertools.combinations(present, count)]
    fitting = [some for some in subsets if size % parts(mesh, some) == 0 and parts(mesh, some) <= most]
    return max(fitting, key=lambda some: parts(mesh, some), default=())


def parts(mesh: AbstractMesh, axes: tuple[str, ...]) -> int:
    """Into how many parts those axes split."""
    return math.prod(mesh.shape[axis] for axis in axes)


def devices_apart(rows: int, kv_heads: int) -> int:
    """Over how many devices XLA splits an attention of so many rows and key heads."""
    mesh = jax.sharding.get_abstract_mesh()
    return parts(mesh, dividing(mesh, BATCH_AXES, rows)) * parts(mesh, dividing(mesh, (HEADS,), kv_heads))


def context_devices() -> int:
    """Devices of the mesh's `context` axis, if XLA splits over it; else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return parts(mesh, _automatic(mesh, (CONTEXT,)))


def context_axis(size: int) -> str | None:
    """The mesh axis over which so many tokens (a prompt's cached keys, for one) are split, or None."""
    return next(iter(dividing(jax.sharding.get_abstract_mesh(), (CONTEXT,), size)), None)


def head_repeats(heads: int, kv_heads: int) -> int:
    """How often a key head is to be repeated so that more devices than there are key heads divide the query heads."""
    devices = parts(mesh := jax.sharding.get_abstract_mesh(), _automatic(mesh, (HEADS,)))
    return devices // kv_heads if devices > kv_heads and devices % kv_heads == 0 and heads % devices == 0 else 1


def merged_over(axis: str, out: Float[Array, "B T N H"], lse: Float[Array, "B T N"]) -> tuple[Array, Array]:
    """Joins the partial attentions of a mesh axis's devices, over disjoint keys, inside `shard_map`."""
    top = jax.lax.pmax(lse, axis)
    shift = jnp.where(jnp.isfinite(top), top, 0.0)
    weight = jnp.exp(lse - shift)
    total = jax.lax.psum(weight, axis)
    safe = jnp.where(total > 0, total, 1.0)
    merged = jax.lax.psum(out.astype(jnp.float32) * weight[..., None], axis) / safe[..., None]
    return merged.astype(out.dtype), jnp.where(total > 0, shift + jnp.log(safe), -jnp.inf)


def _automatic(mesh: AbstractMesh, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of several devices that XLA splits by itself."""
    kinds = dict(zip(mesh.axis_names, mesh.axis_types))
    return tuple(axis for axis in axes if kinds.get(axis) == AxisType.Auto and mesh.shape[axis] > 1)
