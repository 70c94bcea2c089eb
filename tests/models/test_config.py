"""Model facts from config.json in every layout, and those that cannot be served."""

import json
import math
from pathlib import Path

import pytest

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import ExpertConfig, parse_config, read_config

RELEASED = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.json"))


def facts(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f | {"model_type": "qwen2_vl"}, "unsupported architecture 'qwen2_vl'"),
        (lambda f: {key: f[key] for key in f if key != "vision_config"}, "lacks 'vision_config'"),
        (lambda f: f | {"vision_config": None}, "lacks 'vision_config'"),
        (lambda f: with_vision(f, hidden_act="gelu"), "hidden_act 'gelu'.*gelu_pytorch_tanh"),
        (lambda f: with_text(f, hidden_act="gelu"), "hidden_act 'gelu'.*silu"),
        (lambda f: with_vision(f, spatial_merge_size=3), "spatial_merge_size 3"),
        (lambda f: with_vision(f, deepstack_visual_indexes=[2, 0]), "deepstack_visual_indexes .* do not rise"),
        (lambda f: with_text(f, hidden_size=None), "lacks 'hidden_size'"),
        (lambda f: with_text(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}), "rope type 'yarn'"),
        (lambda f: with_text(f, rope_parameters={"mrope_section": [4, 2, 1], "rope_theta": 1e6}), "mrope_section"),
        (lambda f: with_text(f, rope_parameters="default"), "fact of a wrong kind"),
        (lambda f: with_text(f, rope_parameters={"mrope_section": "16", "rope_theta": 1e6}), "not three whole numbers"),
        (lambda f: with_text(f, rms_norm_eps="1e-6"), "norm_eps of TextConfig is '1e-6', not a number above 0"),
        (lambda f: with_vision(f, hidden_size=36), "heads of 18 in the vision tower: .* a multiple of 4"),
        (lambda f: with_text(f, num_attention_heads=0), "num_heads of TextConfig is 0"),
        (lambda f: with_text(f, num_hidden_layers=2.5), "num_layers of TextConfig is 2.5, not a whole number"),
        (lambda f: with_text(f, num_attention_heads=3), "heads do not divide: 3 by 2"),
        (lambda f: with_vision(f, hidden_size=-32), "hidden_size of Qwen3VisionConfig is -32"),
        (lambda f: with_vision(f, deepstack_visual_indexes=[0, 9]), r"\[0, 9\] are not all of the 4 blocks"),
    ],
)
def test_configs_that_cannot_be_served_are_named(tiny_folder, change, message):
    with pytest.raises(ModelError, match=message):
        parse_config(change(facts(tiny_folder)))


def with_vision(found, **changes):
    return found | {"vision_config": found["vision_config"] | changes}


def with_text(found, **changes):
    text = found["text_config"] | changes
    return found | {"text_config": {key: value for key, value in text.items() if value is not None}}


def test_flat_and_nested_configs_are_read_alike(tiny_folder):
    nested = facts(tiny_folder)
    rope = nested["text_config"]["rope_parameters"]
    hub = with_text(
        nested, rope_parameters=None, rope_theta=rope["rope_theta"],
        rope_scaling={"rope_type": "default", "mrope_section": rope["mrope_section"], "mrope_interleaved": True},
    )  # fmt: skip
    flat = {key: value for key, value in hub.items() if key != "text_config"} | hub["text_config"]
    flat["model_type"] = "qwen3_vl"
    assert parse_config(flat) == parse_config(hub) == read_config(tiny_folder)
    config = read_config(tiny_folder)
    assert (config.text.head_dim, config.text.rope_theta, config.text.mrope_section) == (16, 5e6, (4, 2, 2))
    assert config.text.tied_head and config.vision.deepstack_layers == (0, 2)


def test_the_hub_layout_of_qwen2_5(checkpoint):
    nested = facts(checkpoint("qwen2_5_vl"))
    flat = {key: value for key, value in nested.items() if key != "text_config"} | nested["text_config"]
    rope = flat.pop("rope_parameters")
    flat |= {"model_type": "qwen2_5_vl", "rope_theta": rope["rope_theta"], "tie_word_embeddings": True}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat["vision_config"]["in_chans"] = flat["vision_config"].pop("in_channels", 3)
    nested["text_config"]["tie_word_embeddings"] = True  # where transformers 4 wrote it
    config = parse_config(flat)
    assert parse_config(nested) == config
    assert (config.text.head_dim, config.text.qkv_bias, config.text.qk_norm) == (16, True, False)
    assert config.text.tied_head and not config.text.mrope_interleaved and config.text.experts is None
    assert config.vision.window_patches == 16 and config.vision.full_attention_layers == (1, 4)


def test_pixels_are_normalised_as_the_processor_file_says(checkpoint, tmp_path):
    assert read_config(checkpoint("qwen2_5_vl")).vision.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert read_config(checkpoint("qwen3_vl")).vision.image_std == (0.5, 0.5, 0.5)
    (tmp_path / "config.json").write_text(json.dumps(facts(checkpoint("qwen3_vl"))))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    assert read_config(tmp_path).vision.image_mean == (0.1, 0.2, 0.3)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"image_std": [0.4, 0.5, 0.6]}}')
    vision = read_config(tmp_path).vision
    assert (vision.image_mean, vision.image_std) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))


def test_experts_and_windows_that_cannot_be_are_named(checkpoint):
    with pytest.raises(ModelError, match="99 of 8 experts cannot be chosen"):
        parse_config(with_text(facts(checkpoint("qwen3_vl_moe")), num_experts_per_tok=99))
    with pytest.raises(ModelError, match=r"fullatt_block_indexes \['7'\] are not numbers"):
        parse_config(with_vision(facts(checkpoint("qwen2_5_vl")), fullatt_block_indexes="7"))
    with pytest.raises(ModelError, match=r"image_std \[0\.5\] is not one number for each of 3 channels"):
        parse_config(facts(checkpoint("qwen2_5_vl")), {"image_std": [0.5]})
    with pytest.raises(ModelError, match="window_size 20 holds not one token of 28 pixels"):
        parse_config(with_vision(facts(checkpoint("qwen2_5_vl")), window_size=20))


def test_experts(checkpoint):
    moe = facts(checkpoint("qwen3_vl_moe"))
    assert parse_config(moe).text.experts == ExpertConfig(8, 2, 20)
    for change in ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}):
        with pytest.raises(ModelError, match="layers without experts"):
            parse_config(with_text(moe, **change))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_absent_facts_are_what_transformers_takes_for_them(family, checkpoint):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = transformers.AutoConfig.for_model(family)
    folder = checkpoint(family)
    found = facts(folder)
    for part in ("text_config", "vision_config"):
        for key in ("rms_norm_eps", "tokens_per_second", "hidden_act"):
            found[part].pop(key, None)
    assert parse_config(found).text.norm_eps == theirs.text_config.rms_norm_eps


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_transformers_reads_the_same_sizes(path):
    pytest.importorskip("torch")
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from videoauto_jax.models.hf import abstract_model
    from videoauto_jax.models.qwen_vl import parameter_paths
    from videoauto_jax.models.weights import rows

    config = parse_config(json.loads(path.read_text()))
    shapes = parameter_paths(abstract_model(config, "bfloat16", "bfloat16"))
    ours = sum(math.prod(shape.shape) for shape in shapes.values())
    assert {row.path for row in rows(config)} == set(shapes)
    facts = json.loads(path.read_text())
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model(facts.pop("model_type"), **facts))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == ours
