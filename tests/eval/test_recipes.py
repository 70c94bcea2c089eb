"""The packaged recipes state what the published evaluations used."""

import json
from pathlib import Path

import pytest

from videoauto_jax.config import load_config
from videoauto_jax.errors import ModelError
from videoauto_jax.eval.answering import as_sampled, check_model
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.sampling.sampler import SamplingConfig

RECIPES = {
    "qwen2_5_vl_16k": (28, 16384, 256, None),
    "qwen2_5_vl_auto_16k": (28, 16384, 256, 0.97),
    "qwen3_vl_128k": (32, 128000, 2048, None),
    "qwen3_vl_auto_128k": (32, 128000, 2048, 0.98),
}


@pytest.mark.parametrize("name", RECIPES)
def test_budgets_thresholds_and_prompts(name):
    side, total, frames, threshold = RECIPES[name]
    config, token = load_config(EvalConfig, f"eval/{name}"), side**2
    video, image = config.data.video, config.data.image
    assert (image.min_pixels, image.max_pixels) == (128 * token, 16384 * token)
    assert (video.min_pixels, video.max_pixels, video.total_pixels) == (16 * token, 768 * token, total * token)
    assert (video.max_frames, video.fps, video.min_frames) == (frames, 2.0, 4)
    assert config.checkpoint_penalty and len(config.benchmarks) == 9 and "mvp_mini" in config.benchmarks
    assert config.benchmarks["video_mmmu"].max_frames == 64
    if threshold is None:
        assert (config.data.prompt, config.sampling.mode) == ("direct", "second")
        asked = {bench: config.sampling_of(bench).max_new_tokens for bench in config.benchmarks}
        assert asked == {
            "videomme": 16, "mvbench": 16, "longvideobench": 32, "mmvu": 16, "video_mmmu": 1024, "mvp_mini": 32768,
            "charades": 512, "activitynet_tvg": 512, "nextgqa": 16384,
        }  # fmt: skip
    else:
        assert (config.sampling.mode, config.sampling.threshold, config.prompt_variant) == ("auto", threshold, "eval")
        assert {config.sampling_of(bench).max_new_tokens for bench in config.benchmarks} == {4096}
    qwen2_5 = {"mmvu": 64, "activitynet_tvg": 512} if side == 28 else {}
    found = {bench: own.max_frames for bench, own in config.benchmarks.items() if own.max_frames}
    assert found == {"video_mmmu": 64, **qwen2_5} and config.profile == "paper"


@pytest.mark.parametrize("name", RECIPES)
def test_keys_and_values_fit_beside_the_weights(name):
    """All slots, as many prompts that are computed, the longest answers and 8.8 billion weights, on 80 GB."""
    config = load_config(EvalConfig, f"eval/{name}")
    model = "qwen2.5-vl-7b-instruct" if name.startswith("qwen2_5") else "qwen3-vl-8b-instruct"
    facts = json.loads(Path(__file__, "../../../configs/models", f"{model}.json").resolve().read_text())
    text = facts.get("text_config", facts)
    heads = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    token = text["num_hidden_layers"] * text["num_key_value_heads"] * heads * 2 * 2
    assert token == (57344 if name.startswith("qwen2_5") else 147456)
    lengths = config.sampling.prompt_lengths or (24576,)  # the rung that holds 16,384 visual tokens and the text
    answers = max(config.sampling_of(bench).max_new_tokens for bench in config.benchmarks)
    held = config.sampling.prompts * (2 * max(lengths) + answers) * token
    assert held + 2 * 8.8e9 < 75e9


def test_the_repetition_penalty_is_the_checkpoints(tmp_path):
    config = EvalConfig(str(tmp_path), "out", checkpoint_penalty=True)
    assert as_sampled(config, SamplingConfig()).repetition_penalty == 1.0
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05}))
    assert as_sampled(config, SamplingConfig()).repetition_penalty == 1.05
    assert as_sampled(EvalConfig(str(tmp_path), "out"), SamplingConfig()).repetition_penalty == 1.0


def test_what_is_no_model_is_told_at_once(tmp_path):
    with pytest.raises(ModelError, match="no such checkpoint folder"):
        check_model(EvalConfig(str(tmp_path / "none"), "out"))


def test_a_checkpoint_without_a_chat_template_is_told(tiny_folder, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_folder, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="chat template"):
        EvalConfig(str(folder), "out").data.processor(str(folder))
