"""Bicubic resizing of frames on the host, equal to what released checkpoints were trained with.

``upstream`` is antialiased cubic interpolation (a = -0.5) in float32, rounded once at the end: what torchvision's
`functional.resize` does to uint8 tensors. ``hf`` is Pillow's, in fixed point and rounded after each axis: what the
uint8 path of transformers 5 does. The two differ by up to 4 levels on natural frames.
"""

import functools
from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

ResizeMode = Literal["upstream", "hf"]
_CUBIC = np.float32(-0.5)
_STRIP = 240  # pixels of a frame's width


def resize_frame(
    frame: UInt8[ndarray, "H W 3"], height: int, width: int, mode: ResizeMode = "upstream"
) -> UInt8[ndarray, "h w 3"]:
    """One RGB frame at a new size; the same size returns the frame itself."""
    if frame.shape[:2] == (height, width):
        return frame
    if mode == "hf":
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    pixels = _taps(frame.shape[1], width) @ _shrink_rows(frame, height)
    pixels = np.rint(np.clip(pixels, 0, 255, out=pixels), out=pixels).astype(np.uint8)
    return np.ascontiguousarray(pixels.reshape(width, height, 3).transpose(1, 0, 2))


def _shrink_rows(frame: UInt8[ndarray, "H W 3"], height: int) -> Float32[ndarray, "W h*3"]:
    """The frame at its new height, unrounded, turned so that the other axis comes first in memory.

    Strip by strip in one buffer, which stays in the processor's cache and whose pages are asked for once. Pixels are
    turned as items of 12 bytes, which numpy copies twice as fast as threes of floats.
    """
    taps, turned = _taps(frame.shape[0], height), np.empty((frame.shape[1], height * 3), np.float32)
    buffer = np.empty((frame.shape[0], _STRIP, 3), np.float32)
    for start in range(0, frame.shape[1], _STRIP):
        pixels = frame[:, start : start + _STRIP]
        floats = buffer[:, : pixels.shape[1]]
        floats[:] = pixels
        turned[start : start + _STRIP].view("V12")[:] = (taps @ floats.reshape(len(frame), -1)).view("V12").T
    return turned


@functools.lru_cache(maxsize=256)
def _taps(size: int, target: int) -> scipy.sparse.csr_array:
    """Interpolation weights [target, size]: half-pixel centres, support widened when shrinking, rows summing to 1."""
    scale = np.float32(size) / np.float32(target)
    widen = max(scale, np.float32(1))
    support = np.float32(2) * widen
    centre = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centre - support + np.float32(0.5)).astype(np.int32), 0)
    last = np.minimum((centre + support + np.float32(0.5)).astype(np.int32), size)
    column = first[:, None] + np.arange((last - first).max(), dtype=np.int32)
    distance = (column.astype(np.float32) - centre[:, None] + np.float32(0.5)) / widen
    weight = np.where(column < last[:, None], _cubic(np.abs(distance)), np.float32(0))
    weight = weight / weight.sum(axis=1, keepdims=True, dtype=np.float32)
    row = np.broadcast_to(np.arange(target, dtype=np.int32)[:, None], column.shape)
    kept = column < last[:, None]
    return scipy.sparse.csr_array((weight[kept], (row[kept], column[kept])), shape=(target, size), dtype=np.float32)


def _cubic(x: ndarray) -> ndarray:
    """Keys' kernel on x >= 0 (Cubic convolution interpolation, 1981, eq. 15)."""
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * _CUBIC - 4 * _CUBIC
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))
