"""Evaluation with a scripted model: what is written, resumed, skipped and refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.data.datasets import DatasetConfig
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError, DataError, MediaError, ModelError, UsageError
from videoauto_jax.eval import runner
from videoauto_jax.eval.batches import cut, encode_ahead
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.runner import choose, evaluate, read_records
from videoauto_jax.files import read_jsonl
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer
from videoauto_jax.sampling.sampler import SamplingConfig

COUNT = 10


class Script:
    """Processor and model in one: question `n` is answered rightly at once if n is even, and always after thinking."""

    def __init__(self):
        self.damaged: set[str] = set()
        self.batches: list[list[int]] = []
        self.die_after: int | None = None
        self.loads = 0

    def encode(self, messages):
        number = messages[-1]["content"][-1]["text"].split()[1]
        if number in self.damaged:
            raise MediaError("cannot decode", where=f"{number}.mp4")
        return int(number)

    def answerer(self, config, processor):
        self.loads += 1
        return self.answer

    def answer(self, prompts):
        if self.die_after is not None and len(self.batches) >= self.die_after:
            raise KeyboardInterrupt
        self.batches.append(list(prompts))
        return [self._one(n) for n in prompts]

    def _one(self, n):
        first = "A" if n % 2 == 0 else "B"
        values = (np.zeros(20 + n, np.int32), np.zeros(20 + n, np.float32), np.zeros(20 + n, np.float32))
        text = rf"\boxed{{{first}}}<think>so</think>\boxed{{A}}"
        return make_answer(text, *values, 0.99 if n % 2 == 0 else 0.5, FINISH_REASONS.index("stop"), 4)


@pytest.fixture
def script(monkeypatch):
    script = Script()
    monkeypatch.setattr(runner, "read_config", lambda folder: None)
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
    return EvalConfig("no-model", str(tmp_path / "out"), data, sampling)


def test_scores_by_hand(config, script):
    told = []
    summary = evaluate(config, progress=lambda *event: told.append(event))
    first, second, auto = (summary["eval"][mode] for mode in ("first", "second", "auto"))
    assert (first["all"]["accuracy"], second["all"]["accuracy"], auto["all"]["accuracy"]) == (0.5, 1.0, 1.0)
    assert (first["all"]["tokens"], second["all"]["tokens"]) == (4.0, 24.5)
    assert auto["all"]["tokens"] == (5 * 4 + sum(20 + n for n in range(1, COUNT, 2))) / COUNT
    assert auto["perception"]["think_ratio"] == 0.0 and auto["reasoning"]["think_ratio"] == 1.0
    assert summary["n"] == COUNT and summary["skipped"] == []
    assert [event[:2] for event in told] == [(4, 10), (8, 10), (10, 10)]
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
    script.batches, script.die_after = [], 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    path = tmp_path / "again" / "samples.jsonl"
    cut_off = path.read_bytes()
    path.write_bytes(cut_off[: cut_off[:-1].rindex(b"\n") + 20])  # killed in the middle of a line
    script.batches, script.die_after = [], None
    summary = evaluate(config)
    assert path.read_bytes() == whole and summary["n"] == COUNT
    # The batch of the torn line is computed again as a whole, so that it is the same computation.
    assert script.batches == [[4, 5, 6, 7], [8, 9]]


def test_a_finished_evaluation_needs_no_model(config, script):
    first = evaluate(config)
    script.loads = 0
    assert evaluate(config)["eval"] == first["eval"]
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
    assert [record["id"] for record in read_jsonl(f"{config.output}/samples.jsonl")][-1] == "set/6"


def test_nothing_readable_is_an_error(config, script):
    script.damaged = {str(n) for n in range(COUNT)}
    with pytest.raises(DataError, match=r"not one sample.*cannot decode"):
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
    with pytest.raises(UsageError, match="other settings"):
        evaluate(other)
    assert evaluate(other, force=True)["profile"] == "strict"


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


def test_batches_are_cut_alike_whatever_is_done(config):
    samples = config.data.samples()
    ids = [sample.id for sample in samples]
    assert [len(batch) for batch in cut(samples, 4, set())] == [4, 4, 2]
    assert cut(samples, 4, set(ids[:5])) == [samples[4:8], samples[8:]]
    assert cut(samples, 4, set(ids)) == []


def test_encoding_keeps_the_order_and_stops_when_closed(config, script):
    batches = encode_ahead(cut(config.data.samples(), 2, set()), script, workers=3, prefetch=2)
    assert [prompt for _, prompt in next(batches)] == [0, 1]
    assert [prompt for _, prompt in next(batches)] == [2, 3]
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)
