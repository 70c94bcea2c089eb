"""The packaged recipes: the published numbers (upstream's scripts and paper, arXiv 2601.05175), and that they run."""

import json
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videoauto_jax.config import load_config
from videoauto_jax.recipes import packaged_recipes
from videoauto_jax.rewards import RewardPool
from videoauto_jax.train import loop
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.recipe import GRPOConfig, SFTConfig
from videoauto_jax.train.sft import train_sft

FAMILIES = {"qwen2_5_vl_7b": ("qwen2_5_vl", 28), "qwen3_vl_8b": ("qwen3_vl", 32)}
SETS = [
    "DAPO-Math", "VIRL", "ThinkLite-VL-Hard", "ActivityNet-TVG", "Charades-STA", "TimeR1", "NeXT-GQA", "VideoR1",
    "TVBench", "STI-Bench", "MMR-VBench",
]  # fmt: skip
CASES = json.loads((Path(__file__).parents[1] / "data" / "data_cases.json").read_text())
TINY = ["dtype=float32", "remat=false", "reward.workers=1", "rollout.max_new_tokens=6", "data.workers=0"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_published_run(name):
    config, side = load_config(GRPOConfig, f"train/{name}_grpo_auto"), FAMILIES[name][1] ** 2
    assert list(config.data.names) == SETS
    assert config.data.prompt == "answer_twice" and config.data.max_prompt_tokens == 8192
    image, video = config.data.image, config.data.video
    assert (image.min_pixels, image.max_pixels) == (4 * side, 768 * side)
    assert (video.min_pixels, video.max_pixels, video.total_pixels) == (16 * side, 768 * side, 4096 * side)
    assert (video.max_frames, video.fps, video.nframes, video.min_frames) == (256, 2.0, None, None)
    assert config.prompts * config.rollout.branches == 2048 and config.updates == 8 and config.iterations == 1
    assert config.rows % 32 == 0  # a row for each of 32 devices
    assert (config.rollout.branches, config.rollout.max_new_tokens, config.rollout.temperature) == (16, 2048, 1.0)
    drawn = config.rollout.sampling()
    assert (drawn.top_p, drawn.top_k, drawn.min_p, drawn.repetition_penalty, drawn.forced_format) == (1, 0, 0, 1, False)
    assert config.reward.weights == (0.9, 1.1, 1.0)
    loss = config.loss
    assert (loss.loss_type, loss.beta, loss.epsilon, loss.epsilon_high, loss.delta) == ("grpo", 0.01, 0.2, None, None)
    assert (loss.importance_sampling_level, loss.kl_estimator, loss.top_entropy_quantile) == ("token", "k3", 1.0)
    assert config.advantage == "group_std" and config.dynamic_sampling == "off" and not config.mask_truncated
    rule = config.optimizer
    assert (rule.kind, rule.learning_rate, rule.schedule, rule.warmup_steps) == ("adamw", 1e-6, "constant", 0)
    assert (rule.b1, rule.b2, rule.eps, rule.weight_decay, rule.max_grad_norm) == (0.9, 0.999, 1e-8, 0.01, 1.0)
    trains = config.trainable
    assert (trains.vision, trains.merger, trains.text, trains.embed, trains.head) == (False, True, True, True, True)
    assert (config.epochs, config.rounds, config.seed, config.dtype, config.remat) == (1, None, 42, "bfloat16", True)
    assert config.save_every * config.updates == 200 and config.keep == 1


def test_every_recipe_is_whole_and_differs_where_it_should():
    kinds = {"sft": SFTConfig}
    found = {}
    for path in sorted((packaged_recipes() / "train").glob("*.yaml")):
        kind = path.stem.rpartition("_")[2]
        found[path.stem] = load_config(kinds.get(kind, GRPOConfig), f"train/{path.stem}")
    for name in FAMILIES:
        direct, cot, clean = (found[f"{name}_grpo_{kind}"] for kind in ("direct", "cot", "clean"))
        assert (direct.data.prompt, direct.reward.form) == ("direct", "direct")
        assert (cot.data.prompt, cot.reward.form) == ("cot", "cot")
        assert list(clean.data.names) == SETS[:8]
        marked = {set_ for set_, source in clean.data.sets.items() if "benchmark" in source.tags}
        assert marked >= set(SETS[8:]) and not marked & set(clean.data.names)
        assert found[f"{name}_grpo_lora"].lora.rank == 32 and found[f"{name}_sft"].target == "answer"
    assert len({config.output for config in found.values()}) == len(found) == 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny copy of all eleven sets where the recipes look for them."""
    folder = tmp_path_factory.mktemp("data")
    clip = _clip(folder / "clip.mp4")
    config = load_config(GRPOConfig, "train/qwen3_vl_8b_grpo_auto", [f"data.root={folder}"]).data
    for name in SETS:
        place = Path(config.rooted_sets()[name].anno_path)
        annotations = json.loads(json.dumps(CASES[name]["annotations"]).replace("ROOT/", ""))
        files = annotations if isinstance(annotations, dict) else {"": annotations}
        for file, records in files.items():
            path = place / file if file else place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(records))
    for sample in config.samples(keep_missing=True):
        if sample.media is not None:
            _make_media(Path(sample.media), clip)
    return folder


def _clip(path):
    """Two seconds of noise."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(60):
            picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def _make_media(path, clip):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jpg", ".png", ".jpeg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    elif not path.exists():
        path.symlink_to(clip)


class Pool(RewardPool):
    """Grades as always, and rewards the form of every text differently, for a random model is always wrong."""

    def score_many(self, items, **options):
        items = list(items)
        form = [zlib.crc32(text.encode()) / 2**32 for text, _, _ in items]
        return [reward._replace(format=value) for reward, value in zip(super().score_many(items, **options), form)]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_on_all_eleven_sets(name, root, checkpoint, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loop, "RewardPool", Pool)
    model = checkpoint(FAMILIES[name][0], tied=name == "qwen3_vl_8b")
    changes = [*TINY, f"model={model}", f"data.root={root}", f"output={tmp_path / 'run'}"]
    changes += ["prompts=8", "updates=2", "rounds=1", "rollout.branches=2", "data.video.total_pixels=131072"]
    config = load_config(GRPOConfig, f"train/{name}_grpo_auto", changes)
    assert {sample.source for sample in config.data.samples()} == set(SETS)
    assert train_grpo(config, lines=False)
    (line,) = (json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert np.isfinite(line["loss"]) and line["grad_norm"] > 0 and line["num_tokens"] > 0
    assert line["learning_rate"] == pytest.approx(1e-6) and line["rollout_kl"] < 1e-6
    table = [line[f"answers/{kind}"] for kind in ("right_right", "right_wrong", "wrong_right", "wrong_wrong")]
    assert sum(table) == pytest.approx(1)
    assert "published as benchmarks: TVBench" in caplog.text
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_two_supervised_steps_on_all_eleven_sets(root, tiny_folder, tmp_path):
    changes = ["dtype=float32", "remat=false", "data.workers=0", f"model={tiny_folder}", f"data.root={root}"]
    changes += [f"output={tmp_path / 'run'}", "rows=8", "questions=2", "steps=2", "optimizer.warmup_steps=0"]
    changes += ["data.video.total_pixels=131072", "max_response_tokens=1024"]
    assert train_sft(load_config(SFTConfig, "train/qwen3_vl_8b_sft", changes), lines=False)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(np.isfinite(json.loads(line)["loss"]) for line in lines)
