"""Packed patches against sums of the HF processors and the torch vision tower's own grid functions."""

import json
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.data.patches import concatenate_vision, pack_frames, pad_vision, position_taps, rotary_ids

CASES = json.loads((Path(__file__).parent / "vision_cases.json").read_text())["hf_processors_4_57_1"]
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5,) * 3, (0.5,) * 3


def video(count, height, width):
    pixels = ((np.arange(count * 3 * height * width) * 7919) % 256).astype(np.uint8)
    return np.ascontiguousarray(pixels.reshape(count, 3, height, width).transpose(0, 2, 3, 1))


def image(height, width):
    return ((np.arange(height * width * 3) * 7919) % 256).astype(np.uint8).reshape(1, height, width, 3)


@pytest.mark.parametrize(
    ("name", "frames", "patch", "normal"),
    [
        ("qwen25_video_T4_56x84", video(4, 56, 84), 14, CLIP),
        ("qwen25_video_T3_56x56_odd", video(3, 56, 56), 14, CLIP),
        ("qwen3_video_T4_64x96_noresize", video(4, 64, 96), 16, HALF),
        ("qwen25_image_56x84", image(56, 84), 14, CLIP),
        ("qwen25_image_56x84_slow", image(56, 84), 14, CLIP),
        ("qwen3_image_64x96_noresize", image(64, 96), 16, HALF),
    ],
)
def test_normalised_patches_are_those_of_the_hf_processor(name, frames, patch, normal):
    case = CASES[name]
    patches = pack_frames(frames, patch, 8).patches
    assert patches.dtype == np.uint8
    assert list(patches.shape) == case.get("shape", list(patches.shape))
    assert [[len(frames) + 1 >> 1, frames.shape[1] // patch, frames.shape[2] // patch]] == case["grid_thw"]
    mean, std = (np.repeat(np.float32(values), 2 * patch**2) for values in normal)
    pixels = (patches / np.float32(255) - mean) / std
    np.testing.assert_allclose(pixels[0, :8], case["row0_first8"], atol=1e-5)
    np.testing.assert_allclose(pixels[1, :4], case["row1_first4"], atol=1e-5)
    np.testing.assert_allclose(pixels[-1, -8:], case["row_last_last8"], atol=1e-5)
    for key, values in (("sum", pixels), ("abs_sum", np.abs(pixels)), ("sq_sum", pixels.astype(np.float64) ** 2)):
        np.testing.assert_allclose(values.sum(dtype=np.float64), case[key], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("side", [7, 8, 48])
def test_grid_facts_are_those_of_the_torch_tower(side):
    torch = pytest.importorskip("torch")
    from transformers import vision_utils

    for height, width in ((2, 2), (4, 6), (10, 2), (34, 46), (side * 2, side * 2)):
        grid = torch.tensor([[3, height, width]])
        frames = np.zeros((6, height * 4, width * 4, 3), np.uint8)
        packed = pack_frames(frames, 4, side)
        np.testing.assert_array_equal(packed.rotary_ids, vision_utils.get_vision_position_ids(grid, 2).numpy())
        index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
            grid, side, align_corners=True, spatial_merge_size=2
        )
        table = np.random.default_rng(0).normal(size=(side**2, 5)).astype(np.float32)
        expected = (table[index.numpy()] * weight.numpy()[..., None]).sum(1)
        got = (table[packed.position_index] * packed.position_weight[..., None]).sum(0)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        np.testing.assert_allclose(packed.position_weight.sum(0), 1, atol=1e-6)


def test_a_grid_of_the_same_size_is_read_off_directly():
    index, weight = position_taps(8, 8, 8)
    row, column = rotary_ids(8, 8).T
    np.testing.assert_array_equal(index[0], row * 8 + column)
    np.testing.assert_array_equal(weight, np.eye(4, dtype=np.float32)[0][:, None].repeat(64, 1))


def test_four_neighbours_make_one_token():
    packed = pack_frames(np.zeros((2, 8 * 4, 6 * 4, 3), np.uint8), 4, 8)
    blocks = packed.rotary_ids.reshape(-1, 4, 2) // 2
    assert (blocks == blocks[:, :1]).all()


def test_segments_are_temporal_patches_and_padding_is_nothing():
    clip, still = pack_frames(video(5, 32, 64), 16, 8), pack_frames(image(64, 64), 16, 8)
    np.testing.assert_array_equal(clip.segment_ids, np.repeat([1, 2, 3], 8))
    assert clip.segment_bound == 16
    np.testing.assert_array_equal(
        clip.patches[16:, :].reshape(8, 3, 2, -1)[:, :, 0], clip.patches[16:].reshape(8, 3, 2, -1)[:, :, 1]
    )
    both = pad_vision(concatenate_vision([clip, still]), 64)
    np.testing.assert_array_equal(both.segment_ids, [*np.repeat([1, 2, 3], 8), *[4] * 16, *[0] * 24])
    assert both.patches.shape == (64, 1536)
    assert both.position_weight[:, 40:].sum() == 0
    assert both.position_index.dtype == both.rotary_ids.dtype == both.segment_ids.dtype == np.int32
    assert both.position_weight.dtype == np.float32
    assert concatenate_vision([]) is None
