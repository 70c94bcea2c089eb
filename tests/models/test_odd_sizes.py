"""Sizes that no released model has: drawn at random, and held against transformers' torch classes."""

import os

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from videoauto_jax.data.patches import pack_frames
from videoauto_jax.data.windows import token_rows
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.rope import mrope_positions

torch = pytest.importorskip("torch")
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]


@st.composite
def sizes(draw, family):
    """Facts to change in text and vision config, and the grid of a visual in merged tokens."""
    old, kv_heads = family == "qwen2_5_vl", draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    half = draw(st.integers(3, 9))
    first, second = draw(st.integers(1, half - 2)), 1
    second = draw(st.integers(1, half - first - 1))
    section = [first, second, half - first - second] if old else [half - 2 * (half // 3), half // 3, half // 3]
    hidden = heads * 2 * half if old else draw(st.sampled_from([40, 56]))
    depth, vision_heads = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    text = {
        "hidden_size": hidden, "intermediate_size": draw(st.integers(20, 50)), "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": draw(st.integers(1, 4)),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section},
    }  # fmt: skip
    vision = {
        "depth": depth, "num_heads": vision_heads, "hidden_size": vision_heads * 4 * draw(st.integers(1, 5)),
        "intermediate_size": draw(st.integers(10, 40)), "out_hidden_size": hidden,
        "patch_size": draw(st.integers(2, 6)),
    }  # fmt: skip
    layers = st.sets(st.integers(0, depth - 1), max_size=3).map(sorted)
    if old:
        vision["window_size"] = draw(st.integers(1, 4)) * 2 * vision["patch_size"]
        vision["fullatt_block_indexes"] = draw(layers)
    else:
        text["head_dim"] = 2 * half
        vision["deepstack_visual_indexes"] = draw(layers)[: text["num_hidden_layers"]]
        vision["num_position_embeddings"] = draw(st.integers(2, 9)) ** 2
    if family == "qwen3_vl_moe":
        text["num_experts"] = draw(st.integers(2, 7))
        text["num_experts_per_tok"] = draw(st.integers(1, text["num_experts"]))
        text["moe_intermediate_size"] = draw(st.integers(3, 15).filter(lambda size: hidden not in (size, 2 * size)))
    return text, vision, (draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, write_tiny):
    @settings(
        max_examples=3,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(sizes(family))
    def check(drawn):
        text, vision, grid = drawn
        compare(family, write_tiny(family, text=text, vision=vision), vision, grid)

    check()


def compare(family, folder, vision, grid):
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers import AutoModelForImageTextToText

    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    if family == "qwen3_vl_moe":
        reference.set_experts_implementation("eager")  # its grouped product takes multiples of four only
    config = load_model(folder, dtype="float32").config
    patch, window = vision["patch_size"], vision.get("window_size", 0) // (2 * vision["patch_size"])
    time, height, width = grid
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2 * time, height * 2 * patch, width * 2 * patch, 3), dtype=np.uint8)
    packed = pack_frames(frames, patch, int(vision.get("num_position_embeddings", 0) ** 0.5), window=window)
    count, grid, pad = time * height * width, (time, height * 2, width * 2), reference.config.image_token_id
    rows = np.concatenate([i * height * width + token_rows((1, *grid[1:]), window) for i in range(time)])
    # As images: one per temporal patch, which a tower treats like the frames of a video.
    tokens = np.concatenate([[1, 2], *([[3], [pad] * (height * width)] * time), [4, 5]]).astype(np.int32)
    grids = [(1, *grid[1:])] * time
    kind = family.removesuffix("_moe")
    positions = mrope_positions(tokens, grids, family=kind, image_token_id=pad, video_token_id=-7)
    index = np.full(len(tokens), -1, np.int32)
    index[tokens == pad] = rows[:count]
    inputs = ModelInputs(tokens[None], positions[:, None], np.ones((1, len(tokens)), np.int32), index[None], packed)
    found = jax.jit(lambda model, inputs: model(inputs))(load_model(folder, dtype="float32"), inputs)
    mean, std = np.float32(config.vision.image_mean)[:, None], np.float32(config.vision.image_std)[:, None]
    fours = packed.patches.reshape(count, -1)[rows].reshape(-1, 3, 2 * patch**2).astype(np.float32) / 255
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(tokens)[None].long(), position_ids=torch.tensor(positions)[:, None].long(),
            pixel_values=torch.tensor((fours - mean) / std).flatten(1), image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=torch.tensor((tokens == pad).astype(int))[None],
        ).logits.numpy()  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=2e-4)
