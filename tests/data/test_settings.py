"""Checkpoint folders in both layouts, and folders that are none."""

import json

import pytest

from videoauto_jax.data.settings import read_settings
from videoauto_jax.errors import DataError, ModelError


def folder_with(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


def test_hub_layout(tmp_path):
    config = {
        "model_type": "qwen2_5_vl",
        "eos_token_id": 7,
        "image_token_id": 5,
        "vision_config": {"spatial_patch_size": 14, "tokens_per_second": 4, "window_size": 112},
    }
    images = {
        "patch_size": 14,
        "merge_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
    }
    settings = read_settings(folder_with(tmp_path, config=config, preprocessor_config=images))
    assert (settings.family, settings.patch_size, settings.merge_size, settings.position_side) == (
        "qwen2_5_vl",
        14,
        2,
        0,
    )
    assert settings.tokens_per_second == 4
    assert settings.window == 4
    assert settings.image_budget == {"min_pixels": 3136, "max_pixels": 12845056}
    assert settings.token_ids["eos_token_id"] == 7


def test_transformers_5_layout_and_defaults(tmp_path):
    config = {"model_type": "qwen3_vl_moe", "text_config": {"eos_token_id": 7}, "vision_config": {}}
    images = {"image_processor": {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}}
    files = {"config": config, "processor_config": images, "generation_config": {"eos_token_id": [7, 3]}}
    settings = read_settings(folder_with(tmp_path, **files))
    assert (settings.family, settings.patch_size, settings.position_side) == ("qwen3_vl", 16, 48)
    assert settings.image_budget == {"min_pixels": 65536, "max_pixels": 16777216}
    assert settings.token_ids["eos_token_id"] == [7, 3]


def test_an_absent_clock_is_what_transformers_takes_for_it(tmp_path):
    pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig

    settings = read_settings(folder_with(tmp_path, config={"model_type": "qwen2_5_vl", "vision_config": None}))
    assert settings.tokens_per_second == Qwen2_5_VLConfig().vision_config.tokens_per_second


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("key", ["min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"])
def test_a_budget_that_is_no_positive_number_is_named(key, kind, tmp_path):
    images = {"size": {"shortest_edge": 65536, "longest_edge": 131072}}
    settings = read_settings(folder_with(tmp_path, config={"model_type": "qwen3_vl"}, preprocessor_config=images))
    for value in (0, -4, "200704", float("nan"), True):
        with pytest.raises(DataError, match=rf"{key}=.* is not a positive number \(a\.x\)"):
            settings.with_budget({kind: "a.x", key: value}, kind)


def test_a_stated_maximum_lowers_the_default_minimum(tmp_path):
    images = {"size": {"shortest_edge": 65536, "longest_edge": 131072}}
    settings = read_settings(folder_with(tmp_path, config={"model_type": "qwen3_vl"}, preprocessor_config=images))
    assert settings.with_budget({"image": "a"}, "image") == {"image": "a", "min_pixels": 65536, "max_pixels": 131072}
    assert settings.with_budget({"max_pixels": 4096}, "image") == {"min_pixels": 4096, "max_pixels": 4096}
    assert settings.with_budget({"min_pixels": 10**6}, "image") == {"min_pixels": 10**6, "max_pixels": 10**6}
    assert settings.with_budget({"max_pixels": 4096, "fps": None}, "video") == {"min_pixels": 4096, "max_pixels": 4096}
    assert settings.with_budget({}, "video") == {"min_pixels": 128 * 32**2}
    for wrong in ({"max_pixels": "200704"}, {"max_pixels": 0}, {"min_pixels": -1}, {"resized_height": "64"}):
        (key,) = wrong
        with pytest.raises(DataError, match=f"{key}=.* is not a positive number"):
            settings.with_budget(wrong, "image")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config": "{"}, "broken JSON"),
        ({"config": "[]"}, "not a JSON object"),
        ({"config": {"model_type": "llama"}}, "model type 'llama' is not supported"),
        ({"config": {"model_type": ["qwen3_vl"]}}, "is not supported"),
        ({"config": {"model_type": "qwen3_vl", "vision_config": [1]}}, r"vision_config is \[1\], not an object"),
        (
            {"config": {"model_type": "qwen3_vl"}, "preprocessor_config": {"size": 65536}},
            "size is 65536, not an object",
        ),
        (
            {"config": {"model_type": "qwen3_vl"}, "preprocessor_config": {"max_pixels": "65536"}},
            "max_pixels of images is '65536', not a whole number",
        ),
        (
            {"config": {"model_type": "qwen2_5_vl", "vision_config": {"tokens_per_second": "2"}}},
            "tokens_per_second is '2', not a whole number",
        ),
        (
            {"config": {"model_type": "qwen3_vl"}, "preprocessor_config": {"patch_size": 14}},
            "patch_size is 14 .* and 16",
        ),
        ({"config": {"model_type": "qwen3_vl", "vision_config": {"num_position_embeddings": 50}}}, "not a square"),
        ({"config": {"model_type": "qwen3_vl", "vision_config": {"patch_size": 0}}}, "patch_size is 0, not a whole"),
        (
            {"config": {"model_type": "qwen3_vl"}, "generation_config": {"eos_token_id": "<|im_end|>"}},
            "eos_token_id is '<.im_end.>', not a token id .*generation_config.json.*own file",
        ),
        ({"config": {"model_type": "qwen3_vl", "vision_config": {"temporal_patch_size": 1}}}, "is not 2"),
    ],
)
def test_what_is_no_checkpoint_is_named(files, message, tmp_path):
    with pytest.raises(ModelError, match=message) as error:
        read_settings(folder_with(tmp_path, **files))
    assert str(tmp_path) in str(error.value)
