"""Frames to packed patches, with every array that depends on the grid."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from videoauto_jax.models.inputs import VisionInputs

# The shortest attention band the device is compiled for.
_LEAST_BOUND = 16


def pack_frames(
    frames: UInt8[ndarray, "T H W 3"], patch_size: int, position_side: int, merge_size: int = 2
) -> VisionInputs:
    """One visual, packed for Qwen3-VL: every temporal patch (two frames) is an attention segment of its own.

    Args:
        frames: RGB frames whose sides are multiples of `patch_size * merge_size`. An odd count, so also a single still,
            repeats the last frame.
        position_side: side of the square grid of learned position embeddings.
    """
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    time, height, width = len(frames) // 2, frames.shape[1] // patch_size, frames.shape[2] // patch_size
    patches = rearrange(
        frames,
        "(t u) (h a p) (w b q) c -> (t h w a b) (c u p q)",
        u=2, a=merge_size, b=merge_size, p=patch_size, q=patch_size,
    )  # fmt: skip
    index, weight = position_taps(height, width, position_side, merge_size)
    return VisionInputs(
        patches=patches,
        rotary_ids=np.tile(rotary_ids(height, width, merge_size), (time, 1)),
        segment_ids=np.repeat(np.arange(1, time + 1, dtype=np.int32), height * width),
        position_index=np.tile(index, (1, time)),
        position_weight=np.tile(weight, (1, time)),
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
    counts = [part.segment_ids.max() for part in parts]
    offsets = np.cumsum([0, *counts[:-1]], dtype=np.int32)
    return VisionInputs(
        patches=np.concatenate([part.patches for part in parts]),
        rotary_ids=np.concatenate([part.rotary_ids for part in parts]),
        segment_ids=np.concatenate([part.segment_ids + offset for part, offset in zip(parts, offsets)]),
        position_index=np.concatenate([part.position_index for part in parts], axis=1),
        position_weight=np.concatenate([part.position_weight for part in parts], axis=1),
        segment_bound=max(part.segment_bound for part in parts),
    )


def pad_vision(vision: VisionInputs, size: int) -> VisionInputs:
    """The same visuals in `size` patches; padding is 0 everywhere, so belongs to segment 0 and weighs nothing."""
    extra = size - len(vision.segment_ids)
    return dataclasses.replace(
        vision,
        patches=np.pad(vision.patches, ((0, extra), (0, 0))),
        rotary_ids=np.pad(vision.rotary_ids, ((0, extra), (0, 0))),
        segment_ids=np.pad(vision.segment_ids, (0, extra)),
        position_index=np.pad(vision.position_index, ((0, 0), (0, extra))),
        position_weight=np.pad(vision.position_weight, ((0, 0), (0, extra))),
    )


def segment_bound(patches: int) -> int:
    """The power of two, 16 or more, that bounds a segment of so many patches."""
    return max(_LEAST_BOUND, 1 << (patches - 1).bit_length())


def _axis_taps(index: ndarray, size: int, side: int) -> tuple[ndarray, ndarray]:
    """The two grid lines around each index of an axis of `size` patches, and their linear weights, each [2, n]."""
    place = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    lower = np.floor(place)
    lines = np.stack([lower, np.minimum(lower + 1, side - 1)]).astype(np.int32)
    return lines, np.stack([1 - (place - lower), place - lower])
