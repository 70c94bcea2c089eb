"""HF tensors into sharded parameters, piece by piece: the host never holds more than a few pieces.

A piece is a range of rows of one HF tensor for every device at once. It goes to the devices in HF's order of axes and
stored dtype; a small program there turns, casts and writes it into the parameter's buffer, which is donated.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from numpy import ndarray

from videoauto_jax.models.lazy import LazyParameter
from videoauto_jax.models.partition import parameter_spec
from videoauto_jax.models.tensor_files import StoredTensor
from videoauto_jax.models.weights import Row

Tree = TypeVar("Tree")
PIECE_BYTES = 2**22
"""Bytes of an HF tensor that are under way at once (twice: one piece is read while another is written).

Small enough that the C library hands out the same memory again and again; a larger piece is fresh memory each time,
whose pages cost more to get than to fill.
"""


def place(row: Row, tensors: list[StoredTensor], wanted: jax.ShapeDtypeStruct, mesh: Mesh | None) -> jax.Array:
    """One parameter from its HF tensors, whose shapes have been checked.

    Args:
        row: which parameter, and how its axes correspond.
        tensors: one per layer if the row is stacked.
        wanted: shape and dtype.
        mesh: where to place it; None for the default device.
    """
    if sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors) <= PIECE_BYTES:
        return _place_small(row, tensors, wanted, mesh)
    layout = _Layout(row, wanted.shape, wanted.dtype, mesh)
    where = None if mesh is None else NamedSharding(mesh, layout.spec)
    buffer = jnp.zeros(wanted.shape, _bits(wanted.dtype), device=where)
    for layer, tensor in enumerate(tensors):
        for start, make in layout.pieces(tensor):
            piece = make()
            buffer.block_until_ready()  # the piece before this one has been written, and its memory is free
            buffer = layout.write(buffer, layout.send(piece), layer, start)
    return _floats(buffer, wanted.dtype)


def _place_small(row: Row, tensors: list[StoredTensor], wanted: jax.ShapeDtypeStruct, mesh: Mesh | None) -> jax.Array:
    """A parameter no larger than a piece, put together on the host: a program for it would take longer to compile."""
    layers = [row.turned(tensor.read()).astype(wanted.dtype) for tensor in tensors]
    array = np.stack(layers) if row.stacked else layers[0]
    if mesh is None:
        return jnp.asarray(array)
    where = NamedSharding(mesh, parameter_spec(row.path, array.shape, mesh))
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


class _Layout:
    """How the pieces of a parameter's HF tensors lie on the devices.

    `theirs` are the single axes of an HF tensor in its order; ours are those of the parameter without layers, of which
    one that joins several of theirs is never split.
    """

    def __init__(self, row: Row, shape: tuple[int, ...], dtype: np.dtype, mesh: Mesh | None):
        self.mesh, self.dtype = mesh, np.dtype(dtype)
        self.spec = parameter_spec(row.path, shape, mesh) if mesh is not None else PartitionSpec()
        theirs, ours = row.pattern.split(" -> ")
        self.theirs, self.first = _axes(theirs), theirs.split(" ")[0].strip("(")
        places = dict(zip(_axes(ours, joined=True), [*self.spec, *[None] * len(shape)][row.stacked :]))
        sizes = dict(zip(_axes(ours, joined=True), shape[row.stacked :])) | row.sizes
        self.sizes = [sizes[axis] for axis in self.theirs]
        self.piece_spec = PartitionSpec(*(places.get(axis) for axis in self.theirs))
        parts = mesh.shape[places[self.first]] if places.get(self.first) else 1
        self.rows = self.sizes[0] // parts  # of the first axis, on each device
        axis = _axes(ours, joined=True).index(self.first) + row.stacked
        pattern = f"{' '.join(self.theirs)} -> {ours}"
        self.write = _writer(mesh, self.spec, self.piece_spec, pattern, axis, row.stacked, self.dtype)

    def pieces(self, tensor: StoredTensor) -> Iterator[tuple[int, Callable[[], "_Piece"]]]:
        """Where each piece starts on every device, along the first axis, and what reads it."""
        row_bytes = math.prod(self.sizes[1:]) * tensor.dtype.itemsize * (self.sizes[0] // self.rows)
        most = max(PIECE_BYTES // row_bytes, 1)
        size = next(n for n in range(min(most, self.rows), 0, -1) if not self.rows % n)
        for start in range(0, self.rows, size):
            yield start, functools.partial(_Piece, self, tensor, start, size)

    def send(self, piece: "_Piece") -> jax.Array:
        """The piece on the devices."""
        if self.mesh is None:
            return jnp.asarray(piece.parts[0][1])
        shape = (piece.size * (self.sizes[0] // self.rows), *self.sizes[1:])
        arrays = [jax.device_put(array, device) for device, array in piece.parts]
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, self.piece_spec), arrays)


class _Piece:
    """The same range of rows of every device's part of an HF tensor, on the host."""

    def __init__(self, layout: _Layout, tensor: StoredTensor, start: int, size: int):
        self.size = size
        unit = tensor.shape[0] // layout.sizes[0]
        read = functools.cache(lambda row: tensor.read(row * unit, (row + size) * unit))
        self.parts: list[tuple[jax.Device | None, ndarray]] = []
        if layout.mesh is None:
            self.parts.append((None, read(start).reshape(size, *layout.sizes[1:])))
            return
        sharding = NamedSharding(layout.mesh, layout.piece_spec)
        for device, index in sharding.addressable_devices_indices_map(tuple(layout.sizes)).items():
            first = (index[0].start or 0) + start
            self.parts.append((device, read(first).reshape(size, *layout.sizes[1:])[:, *index[1:]]))


@functools.lru_cache(maxsize=1024)
def _writer(mesh, spec, piece_spec, pattern: str, axis: int, stacked: bool, dtype: np.dtype) -> Callable:
    """`(buffer, piece, layer, start) -> buffer`, on every device for itself.

    Two programs: in one, XLA would fuse them, and turn axes on a CPU ten times slower than by itself.
    """
    turned_spec = PartitionSpec(*[*spec][stacked:])

    def turn(piece: jax.Array) -> jax.Array:
        return rearrange(piece, pattern)

    def write(buffer: jax.Array, block: jax.Array, layer: jax.Array, start: jax.Array) -> jax.Array:
        starts = [start if i == axis else 0 for i in range(buffer.ndim)]
        block = jax.lax.bitcast_convert_type(block.astype(dtype), buffer.dtype)
        if stacked:
            block, starts[0] = block[None], layer
        return jax.lax.dynamic_update_slice(buffer, block, starts)

    def on_mesh(function: Callable, in_specs: tuple, out_specs: PartitionSpec) -> Callable:
        if mesh is None:
            return function
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    whole = PartitionSpec()
    turned = jax.jit(on_mesh(turn, (piece_spec,), turned_spec))
    written = jax.jit(on_mesh(write, (spec, turned_spec, whole, whole), spec), donate_argnums=0)
    return lambda buffer, piece, layer, start: written(buffer, turned(piece), layer, start)


def _bits(dtype: np.dtype) -> np.dtype:
    """16-bit floats travel as integers: for every write into a buffer of such floats XLA casts all of it on a CPU."""
    return np.dtype(np.uint16) if dtype.itemsize == 2 else dtype


def _floats(buffer: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The filled buffer as what its bits mean; on a CPU without a copy, whose memory would have to be found first."""
    if buffer.dtype == dtype:
        return buffer
    if next(iter(buffer.sharding.device_set)).platform != "cpu":
        return _bitcast(buffer, dtype)
    if not buffer.committed:
        return jnp.asarray(np.asarray(buffer).view(dtype))
    parts = [jax.device_put(np.asarray(part.data).view(dtype), part.device) for part in buffer.addressable_shards]
    return jax.make_array_from_single_device_arrays(buffer.shape, buffer.sharding, parts)


@functools.partial(jax.jit, static_argnums=1)
def _bitcast(buffer: jax.Array, dtype: DTypeLike) -> jax.Array:
    return jax.lax.bitcast_convert_type(buffer, dtype)


def _axes(side: str, joined: bool = False) -> list[str]:
    """Names of the axes on one side of a pattern; joined ones as one name, or each by itself."""
    if not joined:
        return side.replace("(", "").replace(")", "").split()
    names, depth = [], 0
    for token in side.split():
        if depth:
            names[-1] += f" {token}"
        else:
            names.append(token)
        depth += token.count("(") - token.count(")")
    return names


def gather(array: jax.Array | LazyParameter, layer: int | None) -> np.ndarray:
    """A parameter, or one layer of it, on the host; see `fetch`."""
    if isinstance(array, LazyParameter):
        return array.read(layer)
    return np.asarray(fetch(array if layer is None else array[layer]))


def fetch(tree: Tree) -> Tree:
    """Host copies of device arrays, whole, also where parts of them lie on devices of other processes.

    The way for all that is not known to be replicated. The processes of a job have to call it together.
    """

    def reachable(leaf: object) -> object:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return _replicator(leaf.sharding.mesh)(leaf)

    return jax.device_get(jax.tree.map(reachable, tree))


@functools.cache
def _replicator(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, PartitionSpec()))
