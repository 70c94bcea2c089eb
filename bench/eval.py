"""What an evaluation saves, end to end: files on disk to a table, as ratios measured in one run.

    python bench/eval.py [--out bench/results/eval.json]

A tiny checkpoint answers a small Video-MME made of rendered videos. It was taught, in the script, the answer-twice
format with a thought of about 100 tokens. `gate`: stopping where the first answer is sure, which the choice of the
threshold makes three questions of five, against always thinking. `shared`: 20 questions about one video against 20
about 20 videos, first answers only. `loop`: `auto` against transformers' `generate` for one question after the other,
which writes every response to its end and looks at the first answer afterwards, as the paper's code does (its torch
model in float32 on all cores; the prompts are ours on both sides). Every run is repeated after one that compiles; the
median ratio is stated, and the share of the time in which no prompt was ready.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from videoauto_jax.cli.quickstart.scene import make_scene, render
from videoauto_jax.cli.quickstart.tiny import TinySpec, make_checkpoint
from videoauto_jax.cli.quickstart.video_file import write_video
from videoauto_jax.config import load_config
from videoauto_jax.data.annotations import VideoBudget
from videoauto_jax.data.datasets import DatasetConfig
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.eval.benchmarks import benchmark
from videoauto_jax.eval.cases import load_cases
from videoauto_jax.eval.config import BenchmarkConfig, EvalConfig
from videoauto_jax.eval.runner import evaluate, read_records
from videoauto_jax.protocol import first_answer_confidence
from videoauto_jax.protocol.prompts import BOXED_SUFFIX, system_prompt
from videoauto_jax.sampling.sampler import SamplingConfig
from videoauto_jax.train.recipe import SFTConfig
from videoauto_jax.train.sft import train_sft

THOUGHT = " ".join(f"{second} the lamp is red;" for second in range(15))
OPTIONS = ["A. one", "B. two", "C. three", "D. four"]
ROUNDS = 3
ORACLE = Path(__file__).parents[1] / "tests/models/test_qwen_vl.py"
"""Knows how to give transformers our prompts."""


def write_benchmark(folder: Path, videos: int, questions: int, size: int) -> None:
    """A Video-MME of so many videos and questions, the questions dealt to the videos in turn."""
    rows = []
    (folder / "data").mkdir(parents=True)
    for v in range(videos):
        write_video(folder / "data" / f"v{v}.mp4", render(make_scene(v), size))
    for n in range(questions):
        about = {"duration": "short", "domain": "Knowledge", "sub_category": "Astronomy", "task_type": "OCR Problems"}
        question = f"Question {n}: what colour is the lamp?"
        rows.append({"question": question, "options": OPTIONS, "answer": "A", "videoID": f"v{n % videos}", **about})
    (folder / "test.json").write_text(json.dumps(rows))


def teach(folder: Path, place: Path) -> Path:
    """A checkpoint that answers that benchmark in the right format, with every letter alike."""
    asked = json.loads((place / "test.json").read_text())
    lines = []
    for row in asked:
        question = benchmark("videomme").question(row).removesuffix(BOXED_SUFFIX)
        for letter in "ABCD":
            response = f"\\boxed{{{letter}}}<think>{THOUGHT}</think>\\boxed{{{letter}}}"
            video = f"{row['videoID']}.mp4"
            lines.append({"question": question, "answer": letter, "video": video, "response": response})
    demonstrations = folder / "demonstrations.jsonl"
    demonstrations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [f"{line['question']}{BOXED_SUFFIX} {line['response']}" for line in lines]
    make_checkpoint(folder / "base", [*texts, system_prompt()] * 10, 0, TinySpec())
    config = load_config(SFTConfig, "quickstart/warmup", ["steps=60", "questions=4", "optimizer.warmup_steps=10"])
    sets = {"taught": DatasetConfig("Plain", str(demonstrations), str(place / "data"))}
    data = dataclasses.replace(
        config.data, names=("taught",), sets=sets, max_prompt_tokens=1024, prompt_lengths=None, branch_lengths=None
    )
    paths = {"model": str(folder / "base"), "output": str(folder / "taught")}
    train_sft(dataclasses.replace(config, data=data, **paths), lines=False)
    return folder / "taught" / "model"


def recipe(model: Path, path: Path, slots: int, pixels: int = 1024, **sampling) -> EvalConfig:
    """An evaluation of that benchmark; pixels as the model was taught, unless there are more of them."""
    budget = VideoBudget(1024, pixels, 64 * pixels, max_frames=16)
    settings = SamplingConfig(max_new_tokens=160, prompts=slots, **sampling)
    data = DataConfig(video=budget, max_prompt_tokens=16384, workers=len(os.sched_getaffinity(0)))
    benchmarks = {"videomme": BenchmarkConfig(path=str(path))}
    return EvalConfig(str(model), "", data, settings, benchmarks=benchmarks, dtype="float32", graders=1)


def timed(config: EvalConfig, folder: Path) -> tuple[float, dict]:
    """Seconds of a whole evaluation in a new folder, and its summary."""
    output = tempfile.mkdtemp(dir=folder)
    start = time.perf_counter()
    summary = evaluate(dataclasses.replace(config, output=output))
    return time.perf_counter() - start, summary | {"folder": output}


def gate(model: Path, place: Path, folder: Path, slots: int) -> dict:
    """`auto` against `second`."""
    second = recipe(model, place, slots, mode="second")
    _, summary = timed(second, folder)
    threshold = float(np.quantile([record["confidence"] for record in read_records(summary["folder"])], 0.4))
    modes = {"second": second, "auto": recipe(model, place, slots, mode="auto", threshold=threshold)}
    timed(modes["auto"], folder)
    rounds = [{mode: timed(config, folder) for mode, config in modes.items()} for _ in range(ROUNDS)]
    found = {mode: summary["benchmarks"]["videomme"]["modes"][mode] for mode, (_, summary) in rounds[0].items()}
    return {
        "what": f"{rounds[0]['auto'][1]['n']} questions about as many videos, {slots} slots",
        **{f"{mode}_seconds": statistics.median(one[mode][0] for one in rounds) for mode in modes},
        "ratio": statistics.median(one["auto"][0] / one["second"][0] for one in rounds),
        "tokens": {mode: one["tokens"] for mode, one in found.items()},
        "threshold": threshold,
        "think_ratio": found["auto"]["think_ratio"],
        "waited_share": {
            mode: statistics.median(one[mode][1]["waited"] / one[mode][0] for one in rounds) for mode in modes
        },
    }


def loop(model: Path, place: Path, folder: Path, slots: int, threshold: float) -> dict:
    """`auto` against one question after the other with transformers, prompts read and encoded on both sides."""
    import torch

    spec = importlib.util.spec_from_file_location("oracle", ORACLE)
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    theirs, config = oracle.theirs(model), recipe(model, place, slots, mode="auto", threshold=threshold)
    processor, cases = config.data.processor(str(model)), load_cases(config)
    options = {"max_new_tokens": config.sampling.max_new_tokens, "do_sample": False, "output_scores": True}

    def one_by_one() -> list[bool]:
        """Whether each first answer was sure enough."""
        sure = []
        for case in cases:
            inputs = oracle.torch_inputs(case.sample.messages, processor)
            with torch.no_grad():
                written = theirs.generate(**inputs, **options, return_dict_in_generate=True)
            ids = written.sequences[0, inputs["input_ids"].shape[1] :]
            chosen = torch.log_softmax(torch.cat(written.scores), -1).gather(1, ids[:, None])[:, 0]
            confidence = first_answer_confidence(ids.tolist(), chosen.numpy(), processor.tokenizer)
            sure.append(confidence >= threshold)
        return sure

    summary = timed(config, folder)[1]
    pairs = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sure = one_by_one()
        seconds = time.perf_counter() - start
        pairs.append((timed(config, folder)[0], seconds))
    return {
        "what": f"{len(cases)} questions about as many videos, {slots} slots against one after the other",
        "seconds": statistics.median(a for a, _ in pairs),
        "transformers_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "exits": {
            "ours": 1 - summary["benchmarks"]["videomme"]["modes"]["auto"]["think_ratio"],
            "transformers": float(np.mean(sure)),
        },
    }


def shared(model: Path, folder: Path, questions: int, slots: int) -> dict:
    """Questions about one video against as many about as many videos."""
    seconds = {}
    for videos in (questions, 1):
        place = folder / f"shared-{videos}"
        write_benchmark(place, videos, questions, 224)
        config = recipe(model, place, slots, 224**2, mode="first")
        timed(config, folder)
        seconds[videos] = statistics.median(timed(config, folder)[0] for _ in range(ROUNDS))
    return {
        "what": f"{questions} questions, first answers only, {slots} slots, frames of 224 x 224",
        "videos_seconds": seconds[questions],
        "one_video_seconds": seconds[1],
        "ratio": seconds[questions] / seconds[1],
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "eval.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = folder / "gate"
        write_benchmark(place, 40, 40, 64)
        model = teach(folder, place)
        gated = gate(model, place, folder, 8)
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()}, Python {platform.python_version()}, "
            f"jax {jax.__version__}",
            "gate": gated,
            "loop": loop(model, place, folder, 8, gated["threshold"]),
            "shared": shared(model, folder, 20, 8),
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
