"""Whole runs in a folder: interrupted and taken up again they are the run that was never interrupted."""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from videoauto_jax.cli.main import main
from videoauto_jax.config import dump_config, load_config
from videoauto_jax.data.annotations import ImageBudget
from videoauto_jax.data.datasets import DatasetConfig
from videoauto_jax.data.manifest import Entry, sample_key, write_entry
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.data.selection import usable_samples
from videoauto_jax.errors import ConfigError, DataError, TrainingError, UsageError
from videoauto_jax.rewards import RewardPool, Rewards
from videoauto_jax.sharding import MeshConfig
from videoauto_jax.train import loop, step
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.lora import LoraConfig
from videoauto_jax.train.loss_config import GRPOLossConfig
from videoauto_jax.train.optimizer import OptimizerConfig
from videoauto_jax.train.parameters import TrainableConfig
from videoauto_jax.train.recipe import GRPOConfig, HoldoutConfig, RewardConfig, RolloutConfig, SFTConfig
from videoauto_jax.train.sft import train_sft

ROUNDS = 3


class Pool:
    """Grades like a coin that always falls the same way for the same text."""

    calls, interrupt_at = 0, None

    def __init__(self, workers, timeout_s):
        pass

    def score_many(self, items, *, profile, form):
        Pool.calls += 1
        if Pool.calls == Pool.interrupt_at:
            raise KeyboardInterrupt
        return [Rewards(hashlib.sha256(text.encode()).digest()[0] / 255, 0.0, 0.0) for text, _, _ in items]

    def warm(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine questions with demonstrations; three without an image, so that no four are without: one program for all."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    records = []
    for n in range(9):
        record = {"problem_type": "exact_match", "question": f"What is {n}?", "answer": "A"}
        record["response"] = f"\\boxed{{{n}}}<think>It is {n}.</think>\\boxed{{{n}}}"
        if n % 3:
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{n}.png")
            record["image"] = f"{n}.png"
        records.append(json.dumps(record))
    (folder / "toy.jsonl").write_text("\n".join(records))
    source = DatasetConfig(loader="Plain", anno_path=str(folder / "toy.jsonl"), data_path=str(folder))
    budget = ImageBudget(min_pixels=4096, max_pixels=4096)
    return DataConfig(
        names=("toy",), sets={"toy": source}, prompt="direct", image=budget, workers=0,
        prompt_lengths=(256,), patch_counts=(64,), branch_lengths=(256,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def optimizers():
    return {}


@pytest.fixture(autouse=True)
def one_optimizer(monkeypatch, optimizers):
    """Every run compiles its own step because its optimiser is a new object: here they share one."""

    def make(config, params, total, real=step.make_optimizer):
        if (config, total) not in optimizers:
            optimizers[config, total] = real(config, params, total)
        return optimizers[config, total]

    monkeypatch.setattr(step, "make_optimizer", make)
    monkeypatch.setattr(loop, "RewardPool", Pool)
    Pool.calls, Pool.interrupt_at = 0, None


def recipe(kind, tiny_folder, data, output, **changes):
    shared = {
        "model": str(tiny_folder), "output": str(output), "data": data, "mesh": MeshConfig(fsdp=4, tensor=2),
        "dtype": "float32", "optimizer": OptimizerConfig(learning_rate=1e-2), "remat": False,
    }  # fmt: skip
    if kind == "sft":
        return SFTConfig(**shared, **{"steps": ROUNDS, "rows": 4, "questions": 1, "max_response_tokens": 200} | changes)
    rollout, loss = RolloutConfig(branches=2, max_new_tokens=6), GRPOLossConfig(beta=0.1)
    own = {"rounds": ROUNDS, "prompts": 8, "updates": 2, "rollout": rollout, "loss": loss, "sample_every": 1}
    return GRPOConfig(**shared, **own | changes)


TRAIN = {"sft": train_sft, "grpo": train_grpo}


def interrupt_after(count, rounds=ROUNDS):
    def progress(done, total, metrics):
        assert total == rounds
        if done == count:
            raise KeyboardInterrupt

    return progress


def results(output):
    """What a run leaves: metrics without times, and the exported weights."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if not k.startswith(("seconds", "time"))} for line in lines]
    files = sorted((output / "model").glob("*.safetensors"))
    return timeless, {key: tensor for file in files for key, tensor in load_file(file).items()}


def assert_same_run(found, expected):
    assert [line["step"] for line in found[0]] == list(range(1, ROUNDS + 1))
    assert found[0] == expected[0] and found[1].keys() == expected[1].keys()
    for key, tensor in expected[1].items():
        assert found[1][key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_an_interrupted_run_is_the_uninterrupted_one(kind, tiny_folder, data, tmp_path):
    train, make = TRAIN[kind], functools.partial(recipe, kind, tiny_folder, data)
    train(make(tmp_path / "whole"))
    expected = results(tmp_path / "whole")
    before = load_file(tiny_folder / "model.safetensors")
    assert all((expected[1][key] != tensor).any() for key, tensor in before.items() if "language_model" in key)

    with pytest.raises(KeyboardInterrupt):  # between two units
        train(make(tmp_path / "cut"), progress=interrupt_after(1))
    assert not (tmp_path / "cut" / "model").exists()
    if kind == "grpo":  # in the middle of one: its prompts have been drawn, its first half has been written
        Pool.calls, Pool.interrupt_at = 0, 4
        with pytest.raises(KeyboardInterrupt):
            train(make(tmp_path / "cut"))
        Pool.interrupt_at = None
    train(make(tmp_path / "cut"))
    assert_same_run(results(tmp_path / "cut"), expected)

    def never(*_):
        raise AssertionError("a finished run has nothing to do")

    train(make(tmp_path / "cut"), progress=never)
    with pytest.raises(UsageError, match="another recipe"):
        train(make(tmp_path / "cut", seed=7))
    assert_same_run(results(tmp_path / "cut"), expected)  # and nothing was lost
    assert_phases_are_told(tmp_path / "cut", kind)


def assert_phases_are_told(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    phases = ["input", "update", *(["pack"] if kind == "sft" else ["vision", "prefill", "decode", "reward", "old"])]
    shared = ["learning_rate", "epoch", "num_tokens", "time/tokens_per_second", "data/left_out", "data/skipped"]
    for line in lines:
        assert set(shared) < set(line) and all(line[f"seconds/{phase}"] >= 0 for phase in phases)
    assert lines[0]["num_tokens"] < lines[1]["num_tokens"] and lines[0]["epoch"] < lines[1]["epoch"]
    if kind == "grpo":
        rounds = [json.loads(line)["round"] for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert rounds == list(range(1, ROUNDS + 1))


def test_a_run_goes_on_without_what_it_left_out_when_it_began(tiny_folder, data, tmp_path, tiny_processor, caplog):
    """A file that was missing has come, and an audit has found another one damaged: the order stays what it was."""
    gone = tmp_path / "gone.png"
    path, folder = tmp_path / "toy.jsonl", Path(data.sets["toy"].data_path)
    extra = {"question": "Gone?", "answer": "A", "response": "A", "image": str(gone)}
    path.write_text((folder / "toy.jsonl").read_text() + "\n" + json.dumps(extra))
    sets = {"toy": dataclasses.replace(data.sets["toy"], anno_path=str(path))}
    config = recipe("sft", tiny_folder, data, tmp_path / "run")
    data = dataclasses.replace(data, sets=sets, manifest=str(tmp_path / "manifest.jsonl"))
    config = dataclasses.replace(config, data=data)
    with pytest.raises(KeyboardInterrupt):
        train_sft(config, progress=interrupt_after(1))
    (event,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert (event["epoch"], event["id"], event["media"]) == (None, "toy/10", str(gone))
    assert "1 samples left out" in caplog.text and "toy/10" in caplog.text
    shutil.copy(folder / "1.png", gone)
    sample = data.samples()[1]
    write_entry(data.manifest, Entry(sample.id, sample_key(sample, tiny_processor), sample.media, "damaged"))
    usable, left_out = usable_samples(data, tiny_processor)  # what a new run would make of it
    assert len(usable) == 9 and [one.id for one in left_out] == ["toy/2"]
    with pytest.raises(KeyboardInterrupt):
        train_sft(config, progress=interrupt_after(2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["data/left_out"] for line in lines] == [1, 1] and "1 samples stay left out" in caplog.text


def test_rewards_of_ones_own_are_named_in_yaml(tiny_folder, data, tmp_path, monkeypatch, caplog):
    """A grader for a data set, and a reward of the whole response, some of which never return."""
    (tmp_path / "my_rewards.py").write_text(
        "import time\n"
        "def close(prediction, answer, profile):\n"
        "    return 0.25\n"
        "def length(response, answer, profile):\n"
        "    time.sleep(60 if answer == 'hang' else 0)\n"
        "    return 10.0 + len(response)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(loop, "RewardPool", RewardPool)
    records = [json.loads(line) for line in Path(data.sets["toy"].anno_path).read_text().splitlines()]
    for record in records[:2]:
        record["answer"] = "hang"
    (tmp_path / "toy.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "base.yaml").write_text(dump_config(recipe("grpo", tiny_folder, data, tmp_path / "run")))
    (tmp_path / "own.yaml").write_text(
        f"base: base.yaml\n"
        f"data: {{sets: {{toy: {{anno_path: {tmp_path}/toy.jsonl, problem_type: my_rewards:close}}}}}}\n"
        f"reward: {{form: direct, weights: [1, 0, 0], functions: {{my_rewards:length: 0.5}}, timeout_s: 1}}\n"
    )
    config = load_config(GRPOConfig, tmp_path / "own.yaml")
    with pytest.raises(DataError, match="my_rewards:width.*cannot be imported.*reward.functions"):
        train_grpo(dataclasses.replace(config, reward=RewardConfig(functions={"my_rewards:width": 1.0})))
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyboardInterrupt):
        train_grpo(config, progress=interrupt_after(1))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["rewards/accuracy_twice_boxed_reward1"] == 0.25 and "graded 0 after 1 s" in caplog.text
    assert line["rewards/my_rewards.length"] > 5
    assert line["reward"] == pytest.approx(0.25 + 0.5 * line["rewards/my_rewards.length"])


def test_groups_are_what_was_asked_for(tiny_folder, data, tmp_path, monkeypatch):
    seen = []

    def spy(*args, real=loop.score):
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(loop, "score", spy)
    with pytest.raises(KeyboardInterrupt):
        train_grpo(recipe("grpo", tiny_folder, data, tmp_path / "run"), progress=interrupt_after(1))
    assert [len(part.groups) for part in seen] == [4, 4]
    assert len({group.item[1].id for part in seen for group in part.groups}) == 8
    for part in seen:
        assert all(len(group.answers) == 2 and len(group.answers[0].token_ids) <= 6 for group in part.groups)
        batch, signals = jax.device_get((part.rows.batch, part.signals))
        assert np.abs(signals.advantages.sum(1)).max() < 1e-4 and np.abs(signals.advantages).max() > 0.5
        assert signals.counted.all()
        for b, group in enumerate(part.groups):
            for g, answer in enumerate(group.answers):
                np.testing.assert_array_equal(signals.sampling[b, g][batch.mask[b, g]], answer.sampling_logprobs)
                np.testing.assert_array_equal(batch.targets[b][batch.place[b, g]][batch.mask[b, g]], answer.token_ids)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    totals = np.concatenate([group.totals for part in seen for group in part.groups])
    assert line["reward"] == pytest.approx(totals.mean()) and line["kl"] >= 0
    record = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert record["round"] == 1 and len(record["branches"]) == 2


def test_a_recipe_that_cannot_work_is_refused(tiny_folder, data, tmp_path):
    config = recipe("grpo", tiny_folder, data, tmp_path / "run")
    for changes, message in (
        ({"updates": 3}, "8 prompts do not divide into 3 updates.*for example 2"),
        ({"subgroups": 4}, "2 branches do not divide into 4 subgroups"),
        ({"accumulate": 3}, "4 rows of an update do not divide into 3 accumulate"),
        ({"iterations": 0}, "iterations is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"save_every": 0}, "save_every is 0"),
        ({"holdout": HoldoutConfig(samples=1, every=0)}, "every is 0 .holdout.every"),
        ({"trainable": TrainableConfig(vision=True)}, "vision tower does not train with GRPO"),
        ({"advantage": "rank"}, "rank"),
        (
            {"rollout": RolloutConfig(branches=4, max_new_tokens=65)},
            "may have 260 tokens .branches / subgroups . max_new_tokens., the last rung holds 256 .data.branch_lengths",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(config, **changes)
    for changes, message in (({"branches": 1}, "at least 2 branches"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(ConfigError, match=message):
            RolloutConfig(**changes)
    for key in ("steps", "rows", "questions", "save_every"):
        with pytest.raises(ConfigError, match=f"{key} is 0"):
            recipe("sft", tiny_folder, data, tmp_path / "run", **{key: 0})
    with pytest.raises(ConfigError, match="9 samples do not fill one batch of 10 .prompts.. Set prompts to 9 or less"):
        train_grpo(dataclasses.replace(config, prompts=10))
    with pytest.raises(ConfigError, match="visuals with their questions do not fill one batch of 99 .rows.. Set rows"):
        train_sft(recipe("sft", tiny_folder, data, tmp_path / "run", rows=99))
    assert not (tmp_path / "run").exists()


def test_a_prompt_beyond_the_ladder_is_skipped_by_name(tiny_folder, data, tmp_path):
    short = dataclasses.replace(data, prompt_lengths=(8,))
    assert (short.within_ladder().max_prompt_tokens, data.max_prompt_tokens) == (8, 8192)
    with pytest.raises(DataError, match="samples in a row.*a prompt has .* tokens .*, 8 are allowed"):
        train_grpo(recipe("grpo", tiny_folder, short, tmp_path / "run"))


def test_an_unknown_problem_type_is_told_before_the_folder_is_claimed(tiny_folder, data, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text("\ufeff" + json.dumps({"question": "?", "answer": "1", "problem_type": "maths"}) + "\n")
    config = recipe("grpo", tiny_folder, data, tmp_path / "run")
    sets = {"odd": DatasetConfig("Plain", str(path))}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, names=("odd",), sets=sets))
    with pytest.raises(DataError, match="Did you mean 'math'"):
        train_grpo(config)
    assert not (tmp_path / "run").exists()


def test_held_out_samples_choose_the_best_checkpoint(tiny_folder, data, tmp_path):
    config = recipe("grpo", tiny_folder, data, tmp_path / "run", prompts=4, updates=1, save_every=99,
                    holdout=HoldoutConfig(samples=3, every=2))  # fmt: skip
    assert train_grpo(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    cut = dataclasses.replace(config, output=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        train_grpo(cut, progress=interrupt_after(2))
    assert train_grpo(cut)
    assert_same_run(results(tmp_path / "cut"), results(tmp_path / "run"))
    assert ["eval/accuracy_auto" in line for line in lines] == [False, True, True]
    for line in lines[1:]:
        assert line["seconds/evaluation"] > 0 and line["eval/skipped"] == 0
        assert 0 <= line["eval/accuracy_1"] <= 1 and line["eval/mean_length"] <= 6
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()}
    scores = {line["step"]: line["eval/accuracy_auto"] for line in lines[1:]}
    assert kept == {3, max(scores, key=lambda step: (scores[step], step))}


def test_a_run_without_finite_gradients_ends_and_goes_on_where_it_was_sound(tiny_folder, data, tmp_path, monkeypatch):
    """Rewards that are no numbers stand for whatever breaks a loss; every update of the second round has some."""

    class Broken(Pool):
        def score_many(self, items, **options):
            found = super().score_many(items, **options)
            return found if Pool.calls <= 2 else [Rewards(float("nan"), 0.0, 0.0) for _ in found]

    monkeypatch.setattr(loop, "RewardPool", Broken)
    config = recipe("grpo", tiny_folder, data, tmp_path / "run", max_nonfinite=2, save_every=1)
    with pytest.raises(TrainingError, match="2 updates in a row had no finite gradient.*nonfinite"):
        train_grpo(config)
    batch = np.load(tmp_path / "run" / "nonfinite" / "batch.npz")
    assert np.isnan(batch["1.advantages"]).any()
    names = json.loads((tmp_path / "run" / "nonfinite" / "samples.json").read_text())
    assert len(names) == 4 and all(name.startswith("toy/") for name in names)
    monkeypatch.setattr(loop, "RewardPool", Pool)
    assert train_grpo(config)
    assert [line["step"] for line in results(tmp_path / "run")[0]] == list(range(1, ROUNDS + 1))


def test_adapters_train_alone_and_leave_in_both_forms(tiny_folder, data, tmp_path):
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q", "down"))
    config = recipe("grpo", tiny_folder, data, tmp_path / "run", lora=lora, rounds=2)
    assert train_grpo(config)
    cut = dataclasses.replace(config, output=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        train_grpo(cut, progress=interrupt_after(1, rounds=2))
    assert train_grpo(cut)
    assert results(tmp_path / "cut")[0] == results(tmp_path / "run")[0]
    adapters = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "run"))
    assert len({path.read_bytes() for path in adapters}) == 1
    before = load_file(tiny_folder / "model.safetensors")
    (file,) = (tmp_path / "run" / "model").glob("*.safetensors")
    changed = {key for key, tensor in load_file(file).items() if (tensor != before[key]).any()}
    assert changed and all(key.endswith(("q_proj.weight", "down_proj.weight")) for key in changed)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "exported" / "adapter" / name).read_bytes() == (
            tmp_path / "run" / "adapter" / name
        ).read_bytes()
