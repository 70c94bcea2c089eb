"""Evaluation with a scripted model: what is written, resumed, skipped and refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.data.annotations import VideoBudget
from videoauto_jax.data.datasets import DatasetConfig
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError, DataError, MediaError, ModelError, UsageError
from videoauto_jax.eval import runner
from videoauto_jax.eval.cases import beside_each_other, choose, load_cases
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.continuing import difference
from videoauto_jax.eval.prompts import Prompts
from videoauto_jax.eval.results import Results
from videoauto_jax.eval.runner import evaluate, read_records, read_timings
from videoauto_jax.files import read_jsonl
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer, refusal
from videoauto_jax.sampling.sampler import SamplingConfig
from videoauto_jax.sharding import MeshConfig

COUNT = 10


class Prompt(int):
    """A prompt that is its question's number."""

    token_ids = (0,) * 7


class Script:
    """Processor and model in one: question `n` is answered rightly at once if n is even, and always after thinking."""

    def __init__(self):
        self.damaged: set[str] = set()
        self.asked: list[int] = []
        self.die_after: int | None = None
        self.too_long: int | None = None
        self.loads = 0

    def encode(self, messages):
        number = messages[-1]["content"][-1]["text"].split()[1]
        if number in self.damaged:
            raise MediaError("cannot decode", where=f"{number}.mp4")
        return Prompt(number)

    def answerer(self, config, processor):
        return self

    def stream(self, prompts, sampling):
        for position, n in enumerate(prompts):
            self.loads += not self.asked
            if self.die_after is not None and len(self.asked) >= self.die_after:
                raise KeyboardInterrupt
            self.asked.append(n)
            yield position, refusal("too long") if n == self.too_long else self._one(n)

    def _one(self, n):
        first = "A" if n % 2 == 0 else "B"
        values = (np.zeros(20 + n, np.int32), np.zeros(20 + n, np.float32), np.zeros(20 + n, np.float32))
        text = rf"\boxed{{{first}}}<think>so</think>\boxed{{A}}"
        return make_answer(text, *values, 0.99 if n % 2 == 0 else 0.5, FINISH_REASONS.index("stop"), 4)


@pytest.fixture
def script(monkeypatch):
    script = Script()
    monkeypatch.setattr(runner, "check_model", lambda config: None)
    monkeypatch.setattr(DataConfig, "processor", lambda data, model: script)
    monkeypatch.setattr(runner, "ModelAnswerer", script.answerer)
    return script


@pytest.fixture
def config(tmp_path):
    kinds = ["perception", "reasoning"]
    lines = [
        {"question": f"question {n} ?", "answer": "A", "problem_type": "exact_match", "tags": [kinds[n % 2], "skill"]}
        for n in range(COUNT)
    ]
    annotations = tmp_path / "held_out.jsonl"
    annotations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(("set",), {"set": DatasetConfig("Plain", str(annotations))}, workers=2)
    sampling = SamplingConfig(mode="record", threshold=0.9, prompts=4)
    (tmp_path / "model").mkdir()
    return EvalConfig(str(tmp_path / "model"), str(tmp_path / "out"), data, sampling)


def test_scores_by_hand(config, script):
    told = []
    summary = evaluate(config, progress=lambda *event: told.append(event))
    first, second, auto = (summary["eval"][mode] for mode in ("first", "second", "auto"))
    assert (first["all"]["accuracy"], second["all"]["accuracy"], auto["all"]["accuracy"]) == (0.5, 1.0, 1.0)
    assert (first["all"]["tokens"], second["all"]["tokens"]) == (4.0, 24.5)
    assert auto["all"]["tokens"] == (5 * 4 + sum(20 + n for n in range(1, COUNT, 2))) / COUNT
    assert auto["perception"]["think_ratio"] == 0.0 and auto["reasoning"]["think_ratio"] == 1.0
    assert summary["n"] == COUNT and summary["skipped"] == []
    assert [event[:2] for event in told] == [(n + 1, 10) for n in range(10)]
    assert told[-1][2]["accuracy"] == 1.0
    written = Path(config.output, "summary.json").read_text()
    assert json.loads(written)["eval"] == summary["eval"]


def test_records_stand_in_the_order_of_the_data(config, script):
    evaluate(config)
    assert [record["id"] for record in read_records(config.output)] == [f"set/{n + 1}" for n in range(COUNT)]


def test_an_interrupted_run_ends_with_the_same_file(config, script, tmp_path):
    evaluate(config)
    whole = Path(config.output, "samples.jsonl").read_bytes()
    config = dataclasses.replace(config, output=str(tmp_path / "again"))
    script.asked, script.die_after = [], 6
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    path = tmp_path / "again" / "samples.jsonl"
    cut_off = path.read_bytes()
    path.write_bytes(cut_off[: cut_off[:-1].rindex(b"\n") + 20])  # killed in the middle of a line
    script.asked, script.die_after = [], None
    summary = evaluate(config)
    assert path.read_bytes() == whole and summary["n"] == COUNT
    assert script.asked == [5, 6, 7, 8, 9]


def test_a_finished_evaluation_needs_no_model(config, script):
    first = evaluate(config)
    script.loads = 0
    assert evaluate(config)["eval"] == evaluate(dataclasses.replace(config, strict_media=True))["eval"] == first["eval"]
    assert script.loads == 0


def test_damaged_items_are_listed_and_tried_again(config, script):
    script.damaged = {"5"}
    summary = evaluate(config)
    assert summary["n"] == COUNT - 1 and summary["eval"]["second"]["all"]["n"] == COUNT - 1
    assert [skip["id"] for skip in summary["skipped"]] == ["set/6"]
    assert summary["skipped"][0]["reason"] == "MediaError: cannot decode (5.mp4)"
    script.damaged = set()
    mended = evaluate(config)
    assert mended["n"] == COUNT and mended["skipped"] == []
    assert [record["id"] for record in read_jsonl(f"{config.output}/samples.jsonl")][5] == "set/6"


def test_a_prompt_that_the_sampler_refuses_is_no_wrong_answer(config, script):
    script.too_long = 3
    summary = evaluate(config)
    assert summary["n"] == COUNT - 1 and summary["skipped"][0]["id"] == "set/4"
    assert summary["skipped"][0]["reason"] == "too long"


def test_nothing_readable_is_an_error(config, script):
    script.damaged = {str(n) for n in range(COUNT)}
    with pytest.raises(DataError, match=r"not one of 10 samples.*set/1: .*cannot decode"):
        evaluate(config)


def test_what_is_wrong_with_the_model_is_no_damaged_sample(config, script, monkeypatch):
    def encode(messages):
        raise ModelError("no such family")

    monkeypatch.setattr(script, "encode", encode)
    with pytest.raises(ModelError, match="no such family"):
        evaluate(config)


def test_results_of_other_settings_are_not_mixed(config, script):
    evaluate(config)
    other = dataclasses.replace(config, profile="strict")
    with pytest.raises(UsageError, match="other settings: profile was paper and is strict"):
        evaluate(other)
    assert evaluate(other, force=True)["profile"] == "strict"


def test_a_run_goes_on_with_other_workers_slots_and_reports(config, script):
    script.die_after = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    script.asked, script.die_after = [], None
    other = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, workers=1, prefetch=3),
        sampling=dataclasses.replace(config.sampling, prompts=2),
        strict_media=True,
        published="VideoAuto-R1-8B",
        graders=1,
        mesh=MeshConfig(fsdp=1),
    )
    assert other.mesh != config.mesh and evaluate(other)["n"] == COUNT and len(script.asked) == COUNT - 4
    assert Results(config.output).config == dataclasses.replace(other, strict_media=False)


def test_a_folder_without_an_answer_goes_on_under_any_recipe(config, script, monkeypatch):
    def encode(messages):
        raise ModelError("no chat template")

    with monkeypatch.context() as broken, pytest.raises(ModelError):
        broken.setattr(script, "encode", encode)
        evaluate(config)
    assert evaluate(dataclasses.replace(config, seed=1))["n"] == COUNT
    with pytest.raises(UsageError, match="seed was 1 and is 0"):
        evaluate(config)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model", {"model": "elsewhere"}),
        ("prompt_variant was train and is eval", {"prompt_variant": "eval"}),
        ("seed was 0 and is 1", {"seed": 1}),
        ("data.video.max_frames", {"data": {"video": VideoBudget(max_frames=3)}}),
        ("data.prompt was answer_twice and is direct", {"data": {"prompt": "direct"}}),
        ("sampling.seed", {"sampling": {"seed": 1}}),
        ("sampling.max_new_tokens", {"sampling": {"max_new_tokens": 9}}),
        ("sampling.cache_dtype", {"sampling": {"cache_dtype": "int8"}}),
    ],
)
def test_another_recipe_is_refused_by_the_key_that_differs(config, key, change):
    inner = {name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
             for name, value in change.items()}  # fmt: skip
    assert difference(config, dataclasses.replace(config, **inner)).startswith(key)
    assert difference(config, config) is None


def test_answers_to_other_questions_or_of_other_weights_are_not_kept(config, script):
    evaluate(config)
    path, weights = Path(config.data.sets["set"].anno_path), Path(config.model, "model.safetensors")
    before, lines = path.read_text(), path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], *lines]))
    with pytest.raises(UsageError, match="set/1 asks something else now.*--force"):
        evaluate(config)
    path.write_text(before)
    weights.write_bytes(b"retrained")
    with pytest.raises(UsageError, match="did not begin with the weights that are in .* now.*--force"):
        evaluate(config)
    script.asked = []
    with pytest.raises(UsageError, match="what the other parts have answered"):
        evaluate(dataclasses.replace(config, part=(0, 2)), force=True)
    assert evaluate(config, force=True)["n"] == COUNT and len(script.asked) == COUNT


def test_an_unknown_problem_type_is_told_before_the_model_is_loaded(config, script):
    record = {"question": "question 99 ?", "answer": "1", "problem_type": "maths"}
    Path(config.data.sets["set"].anno_path).write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match="Did you mean 'math'"):
        evaluate(config)
    assert script.loads == 0


def test_a_pass_that_stops_early_scores_only_what_it_knows(config, script):
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, mode="auto"))
    summary = evaluate(config)
    assert list(summary["eval"]) == ["first", "auto"] and "curve" not in summary


def test_limit_draws_by_seed_and_keeps_the_order(config, script):
    samples = config.data.samples()
    drawn = choose(samples, 4, 0)
    assert len(drawn) == 4 and drawn == choose(samples, 4, 0) != choose(samples, 4, 1)
    assert [samples.index(sample) for sample in drawn] == sorted(samples.index(sample) for sample in drawn)
    assert choose(samples, 99, 0) == samples
    assert evaluate(dataclasses.replace(config, limit=4))["n"] == 4
    with pytest.raises(ConfigError, match="limit=0"):
        dataclasses.replace(config, limit=0)
    with pytest.raises(ConfigError, match="seed=-1"):
        dataclasses.replace(config, seed=-1)


def test_prompts_keep_the_order_and_stop_when_closed(config, script):
    script.damaged = {"1"}
    prompts = Prompts(load_cases(config), script, workers=3, ahead=4)
    taken = iter(prompts)
    assert [next(taken) for _ in range(3)] == [0, 2, 3]
    assert [case.sample.id for case in prompts.taken] == ["set/1", "set/3", "set/4"]
    assert [(case.sample.id, "cannot decode" in why) for case, why in prompts.damaged] == [("set/2", True)]
    prompts.close()


def test_every_answer_is_timed(config, script):
    summary = evaluate(config)
    timings = read_timings(config.output)
    assert [line["id"] for line in timings] == [f"set/{n + 1}" for n in range(COUNT)]
    assert timings[3]["tokens"] == 23 and timings[3]["prompt_tokens"] == 7
    assert summary["seconds"] == pytest.approx(sum(line["seconds"] for line in timings), abs=0.01)
    assert [line["first"] for line in timings] == [True] + [False] * (COUNT - 1)


def test_questions_about_one_video_stand_side_by_side(config):
    annotations = Path(config.data.sets["set"].anno_path)
    lines = [json.loads(line) for line in annotations.read_text().splitlines()]
    for n, line in enumerate(lines[:6]):
        line["video"] = f"{n % 2}.mp4"
    annotations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ids = [case.sample.id for case in beside_each_other(load_cases(config))]
    assert ids == [f"set/{n}" for n in (1, 3, 5, 2, 4, 6, 7, 8, 9, 10)]


def test_missing_videos_are_listed_or_refused(config, script):
    annotations = Path(config.data.sets["set"].anno_path)
    lines = [json.loads(line) for line in annotations.read_text().splitlines()]
    lines[2]["video"] = "gone.mp4"
    annotations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = evaluate(config)
    assert summary["n"] == COUNT - 1 and summary["skipped"][0]["reason"] == "its file does not exist"
    with pytest.raises(DataError, match=r"files of 1 of 10 samples do not exist.*gone.mp4"):
        evaluate(dataclasses.replace(config, strict_media=True), force=True)


def test_parts_together_are_the_whole(config, script, tmp_path):
    evaluate(config)
    whole = Path(config.output, "samples.jsonl").read_bytes()
    config = dataclasses.replace(config, output=str(tmp_path / "shared"))
    script.damaged = {"4"}
    first = evaluate(dataclasses.replace(config, part=(1, 2)))
    assert first["n"] == 5 and not Path(config.output, "samples.jsonl").exists()
    both = evaluate(dataclasses.replace(config, part=(0, 2)))
    assert both["n"] == 9 and [skip["id"] for skip in both["skipped"]] == ["set/5"]
    script.damaged = set()
    script.asked = []
    assert evaluate(dataclasses.replace(config, part=(0, 2)))["skipped"] == [] and script.asked == [4]
    assert Path(config.output, "samples.jsonl").read_bytes() == whole
    with pytest.raises(ConfigError, match="i from 0 to n - 1"):
        dataclasses.replace(config, part=(2, 2))


def test_processes_of_a_job_need_parts(config, script, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UsageError, match="whole evaluation.*for example part="):
        evaluate(config)
    assert not Path(config.output).exists() and evaluate(dataclasses.replace(config, part=(0, 1)))["n"] == COUNT
