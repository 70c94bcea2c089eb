"""All nine benchmarks from their folders to their metrics: with a scripted model, and with real tiny checkpoints."""

import dataclasses
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from videoauto_jax.config import dump_config, load_config
from videoauto_jax.data.annotations import ImageBudget, VideoBudget
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError, DataError
from videoauto_jax.eval import benchmark, runner
from videoauto_jax.eval.annotations import find_tables, read_rows
from videoauto_jax.eval.cases import load_cases
from videoauto_jax.eval.config import BenchmarkConfig, EvalConfig
from videoauto_jax.eval.continuing import difference
from videoauto_jax.eval.export import benchmark_rows
from videoauto_jax.eval.report import evaluation_report
from videoauto_jax.eval.runner import evaluate, read_records, read_timings
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer
from videoauto_jax.sampling.sampler import SamplingConfig

NAMES = (
    "videomme", "mvbench", "longvideobench", "mmvu", "video_mmmu", "mvp_mini", "charades", "activitynet_tvg", "nextgqa",
)  # fmt: skip
SMALL = VideoBudget(min_pixels=28**2, max_pixels=16 * 28**2, total_pixels=64 * 28**2, max_frames=4)


class Script:
    """Answers question `#n` with the n-th pair of a list; sure of its first answer where n is even."""

    def __init__(self, said):
        self.said = said

    def encode(self, messages):
        user = next(message for message in messages if message["role"] == "user")
        return Prompt(re.search(r"#(\d+)", user["content"][-1]["text"])[1])

    def stream(self, prompts, sampling):
        for position, n in enumerate(prompts):
            first, second = self.said[n]
            text = rf"\boxed{{{first}}}<think>so</think>\boxed{{{second}}}"
            values = (np.zeros(10, np.int32), np.zeros(10, np.float32), np.zeros(10, np.float32))
            confidence = 0.5 if n % 2 else 0.99
            yield position, make_answer(text, *values, confidence, FINISH_REASONS.index("stop"), 4)


class Prompt(int):
    token_ids = (0,) * 50


def config_of(root, output, *names, model=None, **changes):
    data = DataConfig(
        video=SMALL, image=ImageBudget(28**2, 16 * 28**2), max_prompt_tokens=4096, workers=1, prompt_lengths=(1024,)
    )
    config = EvalConfig(
        str(model or root),
        str(output),
        data,
        SamplingConfig(mode="record", threshold=0.9, prompts=4, max_new_tokens=6),
        root=str(root),
        benchmarks={name: BenchmarkConfig() for name in names},
        prompt_variant="eval",
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def answered(monkeypatch, minis, benchmark_root, tmp_path):
    """`answered(name, **changes)`: the summary of a miniature answered by its script."""

    def run(name, **changes):
        script = Script(minis[name].said)
        monkeypatch.setattr(runner, "check_model", lambda config: None)
        monkeypatch.setattr(DataConfig, "processor", lambda data, model: script)
        monkeypatch.setattr(runner, "ModelAnswerer", lambda config, processor: script)
        return evaluate(config_of(benchmark_root, tmp_path / "out", name, **changes))

    return run


@pytest.mark.parametrize("name", NAMES)
def test_metrics_to_the_last_digit(name, answered, minis):
    mini, found = minis[name], answered(name)["benchmarks"][name]
    assert found["n"] == len(mini.said) and found["skipped"] == 0
    for mode, expected in (("first", mini.first), ("second", mini.second)):
        assert found["modes"][mode]["metrics"] == pytest.approx(expected, rel=1e-15), mode
    for kind, categories in mini.categories.items():
        shown = found["modes"]["second"]["breakdown"][kind]
        assert {value: one["score"] for value, one in shown.items() if one["score"] is not None} == categories


def test_auto_mixes_both_answers_by_confidence(answered):
    found = answered("videomme")["benchmarks"]["videomme"]
    auto = found["modes"]["auto"]
    # Sure of 0 and 2: "A" is right, the empty box is not; unsure of 1 and 3: "B. two" is right, "A" is not.
    assert auto["score"] == 50 and auto["think_ratio"] == 0.5
    assert auto["tokens"] == {"mean": 7, "p50": 7, "p95": 10}
    assert found["saved"]["tokens"] == 12 and found["published"]["VideoAuto-R1-7B"] == 67.3
    always = found["curve"][-1]
    assert (always["score"], always["think_ratio"]) == (75, 1)


def test_strict_is_another_verdict_on_the_same_answers(answered):
    found = answered("videomme", profile="strict")["benchmarks"]["videomme"]["modes"]
    assert found["first"]["score"] == 25  # "Dog" names no option


def test_one_more_benchmark_goes_on_where_the_others_ended(answered, benchmark_root, tmp_path):
    one = answered("videomme")["benchmarks"]
    both = config_of(benchmark_root, tmp_path / "out", "videomme", "charades")
    fewer = difference(both, config_of(benchmark_root, "", "charades"))
    other = difference(both, dataclasses.replace(both, benchmarks=both.benchmarks | {"charades": BenchmarkConfig("x")}))
    assert fewer == "videomme was evaluated and is no more" and other.startswith("benchmarks.charades was {} and is")
    names = {name: BenchmarkConfig() for name in ("videomme", "charades")}
    found = answered("charades", benchmarks=names)  # its script knows the answers to Charades-STA alone
    assert found["benchmarks"]["videomme"]["modes"] == one["videomme"]["modes"]
    assert found["benchmarks"]["charades"]["n"] == 3
    assert len(read_timings(tmp_path / "out")) == 7


def test_records_are_scored_again_without_the_data(answered, tmp_path):
    answered("nextgqa")
    records = read_records(tmp_path / "out")
    chosen = benchmark("nextgqa")
    scores = [chosen.score(record["row"], record["text"]) for record in records]
    assert chosen.aggregate(scores)["accuracy"] == 50 and records[0]["read_second"] == "A <> [1.0, 2.0]"


def test_missing_videos_are_counted_and_one_of_another_name_is_found(answered, benchmark_root):
    assert str(benchmark_root / "videomme/data/z.mkv") in {
        case.sample.media for case in load_cases(config_of(benchmark_root, "", "videomme"))
    }
    clip = benchmark_root / "charades_sta/Charades_v1_480/c1.mp4"
    content = clip.read_bytes()
    clip.unlink()
    try:
        found = answered("charades")
    finally:
        clip.write_bytes(content)
    assert found["benchmarks"]["charades"]["skipped"] == 1 and found["benchmarks"]["charades"]["n"] == 2
    assert [skip["id"] for skip in found["skipped"]] == ["charades/2"]


def test_a_benchmark_without_a_video_stays_in_the_table(answered, benchmark_root, tmp_path):
    videos, away = benchmark_root / "charades_sta/Charades_v1_480", benchmark_root / "away"
    videos.rename(away)
    try:
        found = answered("videomme", benchmarks={"videomme": BenchmarkConfig(), "charades": BenchmarkConfig()})
    finally:
        away.rename(videos)
    assert list(found["benchmarks"]) == ["videomme"] and found["unscored"] == {"Charades-STA": 3}
    row = benchmark_rows(found)[1]
    assert (row["benchmark"], row["score"], row["n"], row["skipped"]) == ("Charades-STA", None, 0, 3)
    assert "Charades-STA" in evaluation_report(found, read_records(tmp_path / "out"), samples=1)


@pytest.mark.parametrize(
    ("recipe", "family", "killed"),
    [
        ("qwen2_5_vl_16k", "qwen2_5_vl", False),
        ("qwen2_5_vl_auto_16k", "qwen2_5_vl", False),
        ("qwen3_vl_128k", "qwen3_vl", False),
        ("qwen3_vl_auto_128k", "qwen3_vl", True),
    ],
)
def test_all_nine_from_their_recipes(recipe, family, killed, checkpoint, benchmark_root, tmp_path):
    """Decoding, a tiny model and the gate under the recipes' own budgets; a killed run ends as an uninterrupted one."""
    small = [
        "dtype=float32",
        "graders=1",
        "data.workers=1",
        "sampling.prompt_lengths=[1024,2048]",
    ]
    small += ["limit=1", f"model={checkpoint(family)}", f"root={benchmark_root}", f"output={tmp_path}/whole"]
    config = load_config(EvalConfig, f"eval/{recipe}", small + [f"benchmarks.{n}.max_new_tokens=6" for n in NAMES])
    summary = evaluate(config)
    assert summary["skipped"] == [] and summary["n"] == 10 and set(summary["benchmarks"]) == set(NAMES)
    pairs = summary["benchmarks"]["mvp_mini"]
    assert pairs["n"] == 2 and pairs["modes"][summary["headline_mode"]]["metrics"]["pair_accuracy"] is not None
    if killed:
        cut_short = dataclasses.replace(config, output=f"{tmp_path}/cut")
        (tmp_path / "cut.yaml").write_text(dump_config(cut_short))
        process = subprocess.run([sys.executable, "-c", KILLED, f"{tmp_path}/cut.yaml"], cwd=tmp_path)
        assert process.returncode == -signal.SIGKILL and len(read_records(cut_short.output)) == 5
        assert evaluate(cut_short)["eval"] == summary["eval"]
        assert (tmp_path / "cut/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()


KILLED = """
import os, signal, sys
from videoauto_jax.config import load_config
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.runner import evaluate
kill = lambda done, *_: done == 5 and os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    evaluate(load_config(EvalConfig, sys.argv[1]), progress=kill)
"""


def test_a_picture_stands_between_video_and_question(benchmark_root):
    case = load_cases(config_of(benchmark_root, "", "video_mmmu"))[0]
    parts = case.sample.messages[-1]["content"]
    assert [part["type"] for part in parts] == ["video", "image", "text"] and "<image 1>" in parts[2]["text"]
    assert case.sample.messages[0]["content"].endswith("\n")


def test_a_baseline_sees_the_picture_where_the_question_names_it(benchmark_root):
    plain = load_cases(config_of(benchmark_root, "", "video_mmmu", prompt="plain"))
    video, before, picture, after = plain[0].sample.messages[-1]["content"]
    assert (video["type"], picture["type"]) == ("video", "image")
    assert (before["text"], after["text"].partition("\n")[0]) == ("What #0? ", "")
    assert [part["type"] for part in plain[-1].sample.messages[-1]["content"]] == ["video", "text"]


def test_minimal_pairs_begin_the_response(benchmark_root):
    config = config_of(benchmark_root, "", "mvp_mini")
    boxed = load_cases(config)[0].sample.messages
    plain = load_cases(dataclasses.replace(config, benchmarks={"mvp_mini": BenchmarkConfig(prompt="plain")}))
    assert boxed[-1] == {"role": "assistant", "content": "\\boxed{Answer:"}
    assert [message["role"] for message in plain[0].sample.messages] == [message["role"] for message in boxed[:-1]]
    others = config_of(benchmark_root, "", "charades", only=("mvp_mini",), prompt="plain")  # not among `benchmarks`
    assert load_cases(others)[0].sample.messages == plain[0].sample.messages
    assert others.sampling_of("mvp_mini").max_new_tokens == 32768


def test_a_limit_draws_whole_pairs(benchmark_root):
    for limit, count in ((1, 2), (3, 4), (4, 4)):
        cases = load_cases(config_of(benchmark_root, "", "mvp_mini", limit=limit))
        pairs = {(case.row["subtask"], case.row["video_id"].rpartition("_")[0]) for case in cases}
        assert len(cases) == count == 2 * len(pairs)


def test_what_is_asked_can_be_narrowed(benchmark_root):
    config = config_of(benchmark_root, "", "mvbench", "charades")
    assert len(load_cases(config)) == 23
    twice = load_cases(dataclasses.replace(config, only=("charades", "charades")))
    assert [case.sample.id for case in twice] == ["charades/1", "charades/2", "charades/3"]
    two = {"mvbench": BenchmarkConfig(tasks=("action_count", "moving_count"), max_frames=2, prompt="plain")}
    cases = load_cases(dataclasses.replace(config, benchmarks=two))
    assert [case.sample.id for case in cases] == ["mvbench/action_count/1", "mvbench/moving_count/1"]
    video, text = cases[0].sample.messages[-1]["content"]
    assert video["max_frames"] == 2 and text["text"].endswith("Only give the best option.\n")
    assert dataclasses.replace(config, benchmarks=two).sampling_of("mvbench").max_new_tokens == 16


def test_wrong_names_are_told(benchmark_root):
    with pytest.raises(ConfigError, match="Did you mean charades"):
        load_cases(config_of(benchmark_root, "", "charade"))
    config = config_of(benchmark_root, "", benchmarks={"mvbench": BenchmarkConfig(tasks=("juggling",))})
    with pytest.raises(ConfigError, match="no sub-task 'juggling'.*action_sequence"):
        load_cases(config)


def test_budgets_of_nothing_are_told():
    for budget in ({"max_frames": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match="=0 .benchmarks.*at least 1"):
            BenchmarkConfig(**budget)


def test_wrong_layouts_are_told(tmp_path):
    chosen = benchmark("videomme")
    with pytest.raises(DataError, match="does not exist.*hf download lmms-lab/Video-MME"):
        list(read_rows(chosen, tmp_path / "none", [""]))
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(DataError, match=r"expected test\*.parquet.*found no parquet or JSON file"):
        find_tables(chosen, tmp_path, [""])
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=r"expected test\*.parquet.*found dev.json, train.json"):
        find_tables(chosen, tmp_path, [""])


def test_one_file_holds_one_sub_task(tmp_path):
    (tmp_path / "all.json").write_text("[]")
    with pytest.raises(DataError, match=r"one file cannot hold 20 sub-tasks.*tasks=\[action_sequence\]"):
        find_tables(benchmark("mvbench"), tmp_path / "all.json", benchmark("mvbench").tasks)
    assert find_tables(benchmark("mvbench"), tmp_path / "all.json", ["moving_count"])


def test_another_split_is_not_taken_for_the_one_wanted(tmp_path):
    mvp, mvbench, lvb = benchmark("mvp"), benchmark("mvbench"), benchmark("longvideobench")
    for name in ("intuitive_physics/mini.parquet", "intuitive_physics/mini.json", "lvb_test.json", "lvb_val.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=r"MVP: expected intuitive_physics/full\*.parquet"):
        find_tables(mvp, tmp_path, ["intuitive_physics"])
    assert find_tables(lvb, tmp_path, [""]) == {"": [tmp_path / "lvb_val.json"]}  # a usual name of `validation`
    (tmp_path / "action_count.json").write_text("[]")
    assert find_tables(mvbench, tmp_path, ["action_count"]) == {"action_count": [tmp_path / "action_count.json"]}


def test_no_benchmark_of_several_may_be_empty(tmp_path, benchmark_root):
    (tmp_path / "test.json").write_text("[]")
    empty = {"charades": BenchmarkConfig(), "activitynet_tvg": BenchmarkConfig(path=str(tmp_path))}
    with pytest.raises(DataError, match="not one sample .activitynet_tvg"):
        load_cases(config_of(benchmark_root, "", benchmarks=empty))


def test_a_changed_schema_is_told(tmp_path, benchmark_root):
    (tmp_path / "test.json").write_text(json.dumps([{"video": "v.mp4", "sentence": "x", "timestamp": [0, 1]}]))
    with pytest.raises(DataError, match="columns missing: caption.*It has video, sentence, timestamp"):
        list(read_rows(benchmark("charades"), tmp_path, [""]))
    for span in ("0-1", [5], []):
        (tmp_path / "test.json").write_text(json.dumps([{"video": "v.mp4", "caption": "x", "timestamp": span}]))
        with pytest.raises(DataError, match="Charades-STA: a row is not as published"):
            load_cases(config_of(tmp_path, "", benchmarks={"charades": BenchmarkConfig(path=str(tmp_path))}))
    row = {"video": "v", "question": "?", "candidates": ["x", "y"], "answer": "x", "solution": [[0, 1]]}
    for wrong, message in (
        ({"answer": "z"}, "none of its options"),
        ({"solution": []}, "not .start, end."),
        ({"question": None}, "question is null"),
    ):
        (tmp_path / "test.json").write_text(json.dumps([row | wrong]))
        with pytest.raises(DataError, match=f"NExT-GQA: a row is not as published.*{message}"):
            load_cases(config_of(tmp_path, "", benchmarks={"nextgqa": BenchmarkConfig(path=str(tmp_path))}))
    row = {"question": "?", "candidates": "['x', ", "answer": "x", "video_id": "p_0", "video_path": "v.mp4"}
    (tmp_path / "intuitive_physics-mini.json").write_text(json.dumps([row]))
    task = BenchmarkConfig(path=str(tmp_path), tasks=("intuitive_physics",))
    with pytest.raises(DataError, match="MVP .mini.: a row is not as published: SyntaxError"):
        load_cases(config_of(tmp_path, "", benchmarks={"mvp_mini": task}))
    (tmp_path / "intuitive_physics-mini.json").unlink()
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(DataError, match="not one sample"):
        load_cases(config_of(tmp_path, "", benchmarks={"charades": BenchmarkConfig(path=str(tmp_path))}))
    broken = tmp_path / "test.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(read_rows(benchmark("charades"), broken, [""]))
