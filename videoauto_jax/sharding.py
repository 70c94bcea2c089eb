"""The device mesh, and where batches and weights go on it."""

import dataclasses
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from videoauto_jax.errors import ConfigError
from videoauto_jax.kernels.sharded import BATCH_AXES, ROW_AXES, dividing
from videoauto_jax.models.inputs import ModelInputs, VisionInputs

Tree = TypeVar("Tree")
AXES = ("data", "fsdp", "expert", "tensor", "context")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, "all that are left".

    Attributes:
        data: copies of the weights, each with its own rows.
        fsdp: shards of the weights; rows are split over it too.
        expert: shards of a layer's experts (mixture of experts); rows are split over it too.
        tensor: shards of heads and feed-forward width.
        context: shards of an update's rows along their tokens, and of a prompt's keys while branches are written.
    """

    data: int = 1
    fsdp: int = -1
    expert: int = 1
    tensor: int = 1
    context: int = 1


def make_mesh(config: MeshConfig | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    config = config or MeshConfig()
    devices = devices or jax.devices()
    sizes = [getattr(config, axis) for axis in AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise ConfigError(f"mesh {dataclasses.asdict(config)}", where="mesh", fix="Sizes are at least 1; one may be -1")
    left, rest = divmod(len(devices), known)
    if rest or (left > 1 and -1 not in sizes):
        stated = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
        wanted = f"a multiple of {known}" if -1 in sizes else str(known)
        fix = "Set one axis to -1, or make the product equal the number of devices"
        raise ConfigError(f"mesh {stated} needs {wanted} devices, there are {len(devices)}", where="mesh", fix=fix)
    sizes = [left if size == -1 else size for size in sizes]
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape]))


def place_rows(tree: Tree, mesh: Mesh, axis: int = 0, *, over: tuple[str, ...] = BATCH_AXES) -> Tree:
    """Host arrays onto the mesh, split along `axis` over those of some mesh axes that divide it into the most parts.

    In a job of several processes each brings the same arrays and places the parts of its own devices.
    """

    def put(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        axes = [None] * array.ndim
        if array.ndim > axis:
            axes[axis] = dividing(mesh.abstract_mesh, over, array.shape[axis]) or None
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(put, tree)


def place_inputs(inputs: ModelInputs, mesh: Mesh) -> ModelInputs:
    """A host batch onto the mesh: rows are split over the batch axes, patches over `context` too."""
    vision = None if inputs.vision is None else place_vision(inputs.vision, mesh)
    token_ids, segment_ids, index = place_rows((inputs.token_ids, inputs.segment_ids, inputs.vision_index), mesh)
    return ModelInputs(token_ids, place_rows(inputs.positions, mesh, axis=1), segment_ids, index, vision)


def place_vision(vision: VisionInputs, mesh: Mesh) -> VisionInputs:
    """Packed visuals onto the mesh: patches are split over the batch axes and `context`."""
    corners = place_rows((vision.position_index, vision.position_weight), mesh, axis=1, over=ROW_AXES)
    by_patch = place_rows(dataclasses.replace(vision, position_index=None, position_weight=None), mesh, over=ROW_AXES)
    return dataclasses.replace(by_patch, position_index=corners[0], position_weight=corners[1])
