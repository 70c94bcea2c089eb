"""Frame resizing against executed sums and against torch."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videoauto_jax.data.resize import resize_frame

CASE = json.loads((Path(__file__).parent / "vision_cases.json").read_text())["pixel_case_video"]


def test_pixel_case():
    pixels = ((np.arange(4 * 3 * 30 * 40) * 7919) % 256).astype(np.uint8).reshape(4, 3, 30, 40)
    frames = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    _, _, height, width = CASE["out_shape"]
    out = np.stack([resize_frame(frame, height, width) for frame in frames])
    assert out.dtype == np.uint8
    assert out.sum(dtype=int) == CASE["sum"]
    assert out[0, 0, :16, 0].tolist() == CASE["first_row"]


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((270, 480), (252, 448)),
        ((540, 960), (128, 224)),
        ((120, 160), (480, 640)),
        ((97, 53), (224, 32)),
        ((64, 64), (32, 96)),
    ],
)
def test_upstream_is_torch_antialiased_bicubic(size, target):
    torch = pytest.importorskip("torch")
    row, column = np.mgrid[: size[0], : size[1]]
    noise = np.random.default_rng(0).normal(0, 4, (*size, 3))
    waves = [127 + 60 * np.sin(row / 17 + c) + 50 * np.cos(column / 11 - c) for c in range(3)]
    frame = (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    oracle = torch.nn.functional.interpolate(tensor, target, mode="bicubic", antialias=True, align_corners=False)
    oracle = oracle.clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    difference = np.abs(resize_frame(frame, *target) - oracle)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_hf_is_pillow():
    frame = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(frame).resize((64, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_frame(frame, 32, 64, "hf"), expected)
    assert (resize_frame(frame, 32, 64) != expected).mean() > 0.01


def test_the_same_size_is_untouched():
    frame = np.zeros((32, 32, 3), np.uint8)
    assert resize_frame(frame, 32, 32) is frame
