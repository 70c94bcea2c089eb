"""The quickstart end to end on a world of a few videos: every stage, the files it promises, and a second start."""

import dataclasses
import json

import pytest

from videoauto_jax.cli.quickstart.bars import bars
from videoauto_jax.cli.quickstart.spec import WorldSpec
from videoauto_jax.cli.quickstart.tiny import TinySpec
from videoauto_jax.cli.quickstart.verb import QuickstartConfig, _claim, run
from videoauto_jax.errors import ConfigError, UsageError
from videoauto_jax.files import read_jsonl

KINDS = {"all", "perception", "reasoning", "grounding"}


def _config(folder, **changes):
    config = QuickstartConfig(
        output=str(folder / "quickstart"),
        world=WorldSpec(train_videos=8, heldout_videos=4, train_questions=3),
        model=TinySpec(hidden=32, intermediate=32, layers=1, heads=1, kv_heads=1, vision_hidden=32, vision_depth=1),
        lamp={"steps": 2, "rows": 2, "optimizer.warmup_steps": 0},
        look={"steps": 2, "rows": 2, "optimizer.warmup_steps": 0},
        study={"steps": 2, "rows": 2, "optimizer.warmup_steps": 0},
        warmup={"steps": 2, "rows": 2, "optimizer.warmup_steps": 0},
        train={"rounds": 1, "prompts": 2, "updates": 1, "rollout.branches": 2, "rollout.max_new_tokens": 8},
        eval={"sampling.max_new_tokens": 8, "sampling.prompts": 8},
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = _config(tmp_path_factory.mktemp("runs"))
    run(config, force=False)
    return config


def test_every_promised_file_is_there(finished, tmp_path):
    folder = tmp_path.__class__(finished.output)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seed"] == 0 and summary["threshold"] > 0
    for stage in ("warmup", "trained"):
        for mode in ("first", "second", "auto"):
            scores = summary["eval"][stage][mode]
            assert set(scores) == KINDS
            assert set(scores["all"]) == {"accuracy", "miou", "tokens", "think_ratio", "n"}
    assert all(set(bar) >= {"value", "target", "met"} for bar in summary["bars"].values())
    assert set(summary["seconds"]) >= {"world", "lamp", "look", "study", "warmup", "train", "eval_trained", "report"}
    assert len(read_jsonl(folder / "train" / "metrics.jsonl")) == 1
    assert (folder / "model" / "config.json").exists() and (folder / "report.png").stat().st_size > 1000
    assert "http" not in (folder / "report.html").read_text().replace("http://www.w3.org", "")


def test_a_second_start_changes_nothing_and_another_seed_steps_aside(finished, tmp_path):
    folder = tmp_path.__class__(finished.output)
    before = (folder / "eval_train" / "samples.jsonl").read_bytes()
    run(finished, force=False)
    assert (folder / "eval_train" / "samples.jsonl").read_bytes() == before
    (folder / "summary.json").rename(folder / "hidden.json")
    with pytest.raises(UsageError, match="unfinished"):
        run(dataclasses.replace(finished, seed=1), force=False)
    (folder / "hidden.json").rename(folder / "summary.json")
    _claim(dataclasses.replace(finished, seed=1), force=False)
    assert (folder.with_name("quickstart-seed0") / "eval_train" / "samples.jsonl").read_bytes() == before
    assert [file.name for file in folder.iterdir()] == ["quickstart.yaml"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": -1}, "negative"),
        ({"world": WorldSpec(size=33)}, "33 pixels"),
        ({"train": {"roundz": 9}}, 'unknown key "roundz".*rounds'),
        ({"eval": {"sampling": {"threshold": "high"}}}, "threshold"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_made(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(_config(tmp_path, **changes), force=False)
    assert list(tmp_path.iterdir()) == []


def test_bars_read_the_scores():
    def scores(first, second, auto):
        one = lambda accuracy, tokens, think: {"accuracy": accuracy, "tokens": tokens, "think_ratio": think}  # noqa: E731
        return {
            "first": {kind: one(value, 5, 0) for kind, value in first.items()},
            "second": {kind: one(value, 50, 1) for kind, value in second.items()},
            "auto": {kind: one(value, 20, think) for kind, (value, think) in auto.items()},
        }

    kinds = ("all", "perception", "reasoning")
    before = scores(*(dict.fromkeys(kinds, 0.4) for _ in range(2)), dict.fromkeys(kinds, (0.4, 0.5)))
    after = scores(
        {"all": 0.6, "perception": 0.9, "reasoning": 0.3},
        {"all": 0.8, "perception": 0.88, "reasoning": 0.72},
        {"all": (0.795, 0.5), "perception": (0.9, 0.1), "reasoning": (0.7, 0.9)},
    )
    found = bars({"warmup": before, "trained": after}, 700)
    values = [round(bar["value"], 6) for bar in found.values()]
    assert values == [40, 42, 2, 0.5, 40, 9, 700]
    assert all(bar["met"] for bar in found.values())
    assert not bars({"warmup": after, "trained": before}, 800)["the whole command"]["met"]
