"""Clips whose frames tell their own number."""

from fractions import Fraction

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def write_clip():
    return _write_clip


@pytest.fixture(scope="session")
def frame_number():
    return _frame_number


def _write_clip(path, frames=60, size=(64, 64), fps=30, codec="libx264", gop=12, pts=None, rotation=None, options=None,
                container=None, seed=None):  # fmt: skip
    """A clip whose i-th frame holds i in eight bright or dark columns, or noise from `seed`; pts in milliseconds."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.options = gop, options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            noise = None if seed is None else rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(_numbered(i, size) if noise is None else noise, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            if pts is not None:
                frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _numbered(i, size):
    """Blue in the top quarter, below it the bits of i from left to right."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    for bit in range(8):
        image[:, bit * width // 8 : (bit + 1) * width // 8] = 255 * (i >> bit & 1)
    image[: height // 4] = (0, 0, 255)
    return image


def _frame_number(frame):
    height, width = frame.shape[:2]
    row = frame[height * 3 // 4].mean(axis=-1)
    return sum((row[bit * width // 8 + width // 16] > 128) << bit for bit in range(8))
