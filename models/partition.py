"""Logical axes of parameters and activations, and how they fall on a mesh.

One table names the axes of every parameter by its path; a layout maps those names to mesh axes. Nothing else in the
project decides where an array lives.
"""

import re

import jax
from jax.sharding import PartitionSpec

from videoauto_jax.errors import ModelError
from videoauto_jax.kernels.sharded import BATCH_AXES, dividing

_ROLLOUT = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor", "experts": "expert"}
LAYOUTS: dict[str, dict[str, str]] = {"train": {"embed": "fsdp", **_ROLLOUT}, "rollout": _ROLLOUT}
"""Logical axis -> mesh axis, for the two layouts in which the same weights live."""

_PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"text/embed/embedding", ("vocab", "embed")),
    (r"text/layers/attention/q/kernel", (None, "embed", "heads", None)),
    (r"text/layers/attention/[kv]/kernel", (None, "embed", "kv_heads", None)),
    (r"text/layers/attention/q/bias", (None, "heads", None)),
    (r"text/layers/attention/[kv]/bias", (None, "kv_heads", None)),
    (r"text/layers/attention/o/kernel", (None, "heads", None, "embed")),
    (r"text/layers/mlp/(gate|up)/kernel", (None, "embed", "mlp")),
    (r"text/layers/mlp/down/kernel", (None, "mlp", "embed")),
    (r"text/layers/mlp/router/kernel", (None, "embed", None)),
    (r"text/layers/mlp/experts/gate_up/kernel", (None, "experts", None, "embed", "mlp")),
    (r"text/layers/mlp/experts/down/kernel", (None, "experts", "mlp", "embed")),
    (r"head/kernel", ("embed", "vocab")),
    (r"vision/patch_embed/kernel", (None, "embed")),
    (r"vision/position_embed/embedding", (None, "embed")),
    (r"vision/blocks/attention/qkv/kernel", (None, "embed", None, "heads", None)),
    (r"vision/blocks/attention/qkv/bias", (None, None, "heads", None)),
    (r"vision/blocks/attention/proj/kernel", (None, "heads", None, "embed")),
    (r"vision/blocks/mlp/(fc1|gate|up)/kernel", (None, "embed", "mlp")),
    (r"vision/blocks/mlp/(fc1|gate|up)/bias", (None, "mlp")),
    (r"vision/blocks/mlp/(fc2|down)/kernel", (None, "mlp", "embed")),
    (r"merger/fc1/kernel", ("embed", "mlp")),
    (r"merger/fc2/kernel", ("mlp", "embed")),
    (r"deepstack_mergers/fc1/kernel", (None, "embed", "mlp")),
    (r"deepstack_mergers/fc2/kernel", (None, "mlp", "embed")),
    (r".*(norm\w*|bias)(/scale|/bias)?", ()),
    (r".*/adapter/[ab]", ()),
)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, layout: str = "train") -> PartitionSpec:
    """Where a parameter lives on `mesh`.

    A dimension that its mesh axis does not divide stays whole (a tiny model on a wide mesh, 4 KV heads on 8 devices).

    Args:
        path: slash-separated path, as `videoauto_jax.models.qwen_vl.parameter_paths` gives.
        shape: the parameter's shape.
        mesh: the device mesh.
        layout: a key of `LAYOUTS`.

    Raises:
        ModelError: the table does not know the path, or a mesh axis would be used twice for one array.
    """
    axes = logical_axes(path)
    chosen = [LAYOUTS[layout].get(axis) for axis in axes]
    placed = [dividing_axis(mesh, axis, size) for axis, size in zip(chosen, shape)]
    used = [axis for axis in placed if axis]
    if len(used) != len(set(used)):
        raise ModelError(f"layout {layout!r} uses a mesh axis twice for {path}", fix="Correct models/partition.py")
    # The form in which jit returns a sharding, or the second step would compile again: no axis of one device.
    placed = [axis if axis and mesh.shape[axis] > 1 else None for axis in placed]
    while placed and placed[-1] is None:
        placed.pop()
    return PartitionSpec(*placed)


def logical_axes(path: str) -> tuple[str | None, ...]:
    """The logical axis names of a parameter; empty if it is replicated whatever its rank."""
    for pattern, axes in _PARAMETERS:
        if re.fullmatch(pattern, path):
            return axes
    raise ModelError(f"no sharding rule for parameter {path}", fix="Add it to models/partition.py")


def constrain(x: jax.Array, *, axes: tuple[str, ...] = BATCH_AXES, token_axis: str | None = None) -> jax.Array:
    """Keeps an activation's first axis on those axes of the mesh in use, or the whole on every device where they do
    not divide it: left to choose, XLA's partitioner has computed other numbers. Does nothing without a mesh.

    Args:
        x: the activation.
        axes: mesh axes over which its first axis is split.
        token_axis: the mesh axis over which its second axis is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(dividing(mesh, axes, x.shape[0]) or None, token_axis))


def batch_axes(mesh: jax.sharding.AbstractMesh, rows: int) -> tuple[str, ...]:
    """The mesh axes over which so many rows are split: those batch axes that divide them into most; () if none does."""
    return dividing(mesh, BATCH_AXES, rows)


def dividing_axis(mesh: jax.sharding.AbstractMesh, axis: str, size: int) -> str | None:
    """The axis, if the mesh has it and it divides a dimension of that size."""
    return axis if axis in mesh.axis_names and size % mesh.shape[axis] == 0 else None
