"""Frames to packed patches, with every array that depends on the grid."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from videoauto_jax.data.windows import window_order
from videoauto_jax.models.inputs import VisionInputs

# The shortest attention band the device is compiled for.
_LEAST_BOUND = 16


def pack_frames(
    frames: UInt8[ndarray, "T H W 3"], patch_size: int, position_side: int = 0, merge_size: int = 2, window: int = 0
) -> VisionInputs:
    """One visual, packed: every temporal patch (two frames) is an attention segment of its own.

    Args:
        frames: RGB frames whose sides are multiples of `patch_size * merge_size`. An odd count, so also a single still,
            repeats the last frame.
        position_side: side of the square grid of learned position embeddings (Qwen3-VL); 0 without.
        window: merged tokens along the side of an attention window (Qwen2.5-VL); 0 without.
    """
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    time, height, width = len(frames) // 2, frames.shape[1] // patch_size, frames.shape[2] // patch_size
    patches = rearrange(
        frames,
        "(t u) (h a p) (w b q) c -> (t h w a b) (c u p q)",
        u=2, a=merge_size, b=merge_size, p=patch_size, q=patch_size,
    )  # fmt: skip
    order, windows = window_order(height // merge_size, width // merge_size, window)
    inside = np.arange(merge_size**2)
    order = (order[:, None] * len(inside) + inside).reshape(-1)
    if window:
        patches = patches.reshape(time, height * width, -1)[:, order].reshape(patches.shape)
        windows = np.arange(time)[:, None] * (windows.max() + 1) + np.repeat(windows, len(inside)) + 1
    index, weight = position_taps(height, width, position_side, merge_size) if position_side else (None, None)
    return VisionInputs(
        patches=patches,
        rotary_ids=np.tile(rotary_ids(height, width, merge_size)[order], (time, 1)),
        segment_ids=np.repeat(np.arange(1, time + 1, dtype=np.int32), height * width),
        window_ids=windows.reshape(-1).astype(np.int32) if window else None,
        position_index=np.tile(index, (1, time)) if position_side else None,
        position_weight=np.tile(weight, (1, time)) if position_side else None,
        segment_bound=segment_bound(height * width),
    )


@functools.lru_cache(maxsize=256)
def rotary_ids(height: int, width: int, merge_size: int = 2) -> Int[ndarray, "n 2"]:
    """int32 (row, column) of the patches of one frame, in patch order: blocks of merge_size², row-major inside."""
    cells = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).astype(np.int32)
    return rearrange(cells, "(h a) (w b) two -> (h w a b) two", a=merge_size, b=merge_size)


@functools.lru_cache(maxsize=256)
def position_taps(
    height: int, width: int, side: int, merge_size: int = 2
) -> tuple[Int[ndarray, "4 n"], Float[ndarray, "4 n"]]:
    """Where a frame of height x width patches lies on the learned `side` x `side` grid of position embeddings.

    Corners are aligned: patch (0, 0) is embedding (0, 0) and the last patch is the last embedding (HF
    Qwen3VLVisionModel).

    Returns:
        int32 rows of the flattened grid at the four corners around each patch, in patch order, and their float32
        bilinear weights, which sum to 1.
    """
    row, column = rotary_ids(height, width, merge_size).T
    rows, row_weights = _axis_taps(row, height, side)
    columns, column_weights = _axis_taps(column, width, side)
    index = (rows[:, None] * side + columns[None, :]).reshape(4, -1)
    weight = (row_weights[:, None] * column_weights[None, :]).reshape(4, -1)
    return index.astype(np.int32), weight


def concatenate_vision(parts: Sequence[VisionInputs]) -> VisionInputs | None:
    """Visuals one after another, their segments numbered on; None if there is none."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    return VisionInputs(
        patches=np.concatenate([part.patches for part in parts]),
        rotary_ids=np.concatenate([part.rotary_ids for part in parts]),
        segment_ids=_numbered_on([part.segment_ids for part in parts]),
        window_ids=_numbered_on([part.window_ids for part in parts]),
        position_index=_joined([part.position_index for part in parts]),
        position_weight=_joined([part.position_weight for part in parts]),
        segment_bound=max(part.segment_bound for part in parts),
    )


def pad_vision(vision: VisionInputs, size: int) -> VisionInputs:
    """The same visuals in `size` patches; padding is 0 everywhere, so belongs to segment 0 and weighs nothing."""

    def padded(array: ndarray | None, axis: int = 0) -> ndarray | None:
        if array is None:
            return None
        extra = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
        return np.pad(array, extra)

    return dataclasses.replace(
        vision,
        patches=padded(vision.patches),
        rotary_ids=padded(vision.rotary_ids),
        segment_ids=padded(vision.segment_ids),
        window_ids=padded(vision.window_ids),
        position_index=padded(vision.position_index, 1),
        position_weight=padded(vision.position_weight, 1),
    )


def _numbered_on(ids: Sequence[ndarray | None]) -> ndarray | None:
    if ids[0] is None:
        return None
    offsets = np.cumsum([0, *(part.max() for part in ids[:-1])], dtype=np.int32)
    return np.concatenate([part + offset for part, offset in zip(ids, offsets)])


def _joined(corners: Sequence[ndarray | None]) -> ndarray | None:
    return None if corners[0] is None else np.concatenate(corners, axis=1)


def segment_bound(patches: int) -> int:
    """The power of two, 16 or more, that bounds a segment of so many patches."""
    return max(_LEAST_BOUND, 1 << (patches - 1).bit_length())


def _axis_taps(index: ndarray, size: int, side: int) -> tuple[ndarray, ndarray]:
    """The two grid lines around each index of an axis of `size` patches, and their linear weights, each [2, n]."""
    place = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    lower = np.floor(place)
    lines = np.stack([lower, np.minimum(lower + 1, side - 1)]).astype(np.int32)
    return lines, np.stack([1 - (place - lower), place - lower])
