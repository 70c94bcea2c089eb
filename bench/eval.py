"""What an evaluation saves, end to end: files on disk to a table, as ratios measured in one run.

    python bench/eval.py [--questions 240] [--rounds 5] [--only gate loop shared] [--out bench/results/eval.json]

A tiny checkpoint answers a small Video-MME made of rendered videos. It was taught, in the script, the answer-twice
format with a thought of 90 tokens. `gate`: stopping where the first answer is sure, which the choice of the threshold
makes three questions of five, against always thinking, on clips of four frames with three questions about each, as
Video-MME has. `loop`: `auto` on the same clips against transformers' `generate` for one question after the other, which
writes every response to its end and looks at the first answer afterwards, as the paper's code does (its torch model in
float32 on one thread, loaded beforehand; the prompts are ours on both sides). `shared`: 20 questions about one video
against 20 about 20 videos, first answers only. Every run is repeated after one that compiles; the median ratio stands
beside what it ought to be, and the share of the time in which no prompt was ready. Our times hold everything from
reading the annotations and loading the model on.
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
from collections.abc import Callable, Iterator, Sequence
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

THOUGHT = " ".join(a + b for a in "bdfghjklmnprstv" for b in ("a", "e", "i", "o", "u", "y"))
"""Ninety words, each one token: what comes next is easily learnt."""
OPTIONS = ["A. one", "B. two", "C. three", "D. four"]
PARTS = ("gate", "loop", "shared")
SLOTS, FRAMES = 8, 4
LOOP = 60
"""Questions that the loop answers, a third of a second each."""
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


def recipe(model: Path, path: Path, frames: int, pixels: int = 1024, **sampling) -> EvalConfig:
    """An evaluation of that benchmark; pixels as the model was taught, unless there are more of them."""
    budget = VideoBudget(1024, pixels, 64 * pixels, max_frames=frames)
    settings = SamplingConfig(max_new_tokens=128, prompts=SLOTS, **sampling)
    data = DataConfig(video=budget, max_prompt_tokens=16384, workers=len(os.sched_getaffinity(0)))
    benchmarks = {"videomme": BenchmarkConfig(path=str(path))}
    return EvalConfig(str(model), "", data, settings, benchmarks=benchmarks, dtype="float32", graders=1)


def timed(config: EvalConfig, folder: Path) -> tuple[float, dict]:
    """Seconds of a whole evaluation in a new folder, and its summary."""
    output = tempfile.mkdtemp(dir=folder)
    start = time.perf_counter()
    summary = evaluate(dataclasses.replace(config, output=output))
    return time.perf_counter() - start, summary | {"folder": output}


def calibrated(model: Path, place: Path, folder: Path) -> dict[str, EvalConfig]:
    """Both modes, `auto` at the threshold that three first answers of five reach; both are compiled."""
    second = recipe(model, place, FRAMES, mode="second")
    _, summary = timed(second, folder)
    threshold = float(np.quantile([record["confidence"] for record in read_records(summary["folder"])], 0.4))
    auto = recipe(model, place, FRAMES, mode="auto", threshold=threshold)
    timed(auto, folder)
    return {"second": second, "auto": auto}


def gate(modes: dict[str, EvalConfig], folder: Path, rounds: int) -> dict:
    """`auto` against `second`."""
    runs = [{mode: timed(config, folder) for mode, config in modes.items()} for _ in range(rounds)]
    found = {mode: summary["benchmarks"]["videomme"]["modes"][mode] for mode, (_, summary) in runs[0].items()}
    return {
        "what": f"{runs[0]['auto'][1]['n']} questions, three a video, {SLOTS} slots: auto over second",
        "aim": "at most 0.5",
        "ratio": statistics.median(one["auto"][0] / one["second"][0] for one in runs),
        **{f"{mode}_seconds": statistics.median(one[mode][0] for one in runs) for mode in modes},
        "tokens": {mode: one["tokens"] for mode, one in found.items()},
        "threshold": modes["auto"].sampling.threshold,
        "think_ratio": found["auto"]["think_ratio"],
        "waited_share": {
            mode: statistics.median(one[mode][1]["waited"] / one[mode][0] for one in runs) for mode in modes
        },
    }


def loop(auto: EvalConfig, folder: Path, rounds: int) -> dict:
    """`auto` against one question after the other with transformers, prompts read and encoded on both sides."""
    config = dataclasses.replace(auto, limit=LOOP)
    one_by_one = transformers_loop(config)
    exits = 1 - timed(config, folder)[1]["benchmarks"]["videomme"]["modes"]["auto"]["think_ratio"]
    pairs = []
    for _ in range(rounds):
        start = time.perf_counter()
        sure = one_by_one()
        seconds = time.perf_counter() - start
        pairs.append((timed(config, folder)[0], seconds))
    return {
        "what": f"{len(sure)} questions: transformers, one after the other, over {SLOTS} slots",
        "aim": "at least 10",
        "ratio": statistics.median(theirs / ours for ours, theirs in pairs),
        "seconds": statistics.median(ours for ours, _ in pairs),
        "transformers_seconds": statistics.median(theirs for _, theirs in pairs),
        "exits": {"ours": exits, "transformers": float(np.mean(sure))},
    }


def transformers_loop(config: EvalConfig) -> Callable[[], list[bool]]:
    """What answers the recipe's questions one by one, and says of each first answer whether it was sure enough."""
    import torch

    spec = importlib.util.spec_from_file_location("oracle", ORACLE)
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    torch.set_num_threads(1)  # faster than several for a model this small
    model, processor = oracle.theirs(Path(config.model)), config.data.processor(config.model)
    options = {"max_new_tokens": config.sampling.max_new_tokens, "do_sample": False, "output_scores": True}

    def answer(messages: list[dict]) -> bool:
        inputs = oracle.torch_inputs(
            [message | {"content": _parts(message["content"])} for message in messages], processor
        )
        with torch.no_grad():
            written = model.generate(**inputs, **options, return_dict_in_generate=True)
        ids = written.sequences[0, inputs["input_ids"].shape[1] :]
        chosen = torch.log_softmax(torch.cat(written.scores), -1).gather(1, ids[:, None])[:, 0]
        confidence = first_answer_confidence(ids.tolist(), chosen.numpy(), processor.tokenizer)
        return confidence >= config.sampling.threshold

    return lambda: [answer(case.sample.messages) for case in load_cases(config)]


def _parts(content: str | list[dict]) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def shared(model: Path, folder: Path, questions: int, rounds: int) -> dict:
    """Questions about one video against as many about as many videos."""
    configs = {}
    for videos in (questions, 1):
        place = folder / f"shared-{videos}"
        write_benchmark(place, videos, questions, 448)
        configs[videos] = recipe(model, place, 16, 448**2, mode="first")
        timed(configs[videos], folder)
    runs = [{videos: timed(config, folder)[0] for videos, config in configs.items()} for _ in range(rounds)]
    return {
        "what": f"{questions} questions, first answers only, 16 frames of 448 x 448: videos over one video",
        "aim": "at least 5",
        "ratio": statistics.median(one[questions] / one[1] for one in runs),
        "videos_seconds": statistics.median(one[questions] for one in runs),
        "one_video_seconds": statistics.median(one[1] for one in runs),
    }


def measured(parts: Sequence[str], questions: int, rounds: int) -> Iterator[tuple[str, dict]]:
    """Every part's name and figures as they are known."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_benchmark(folder / "gate", -(-questions // 3), questions, 64)
        model = teach(folder, folder / "gate")
        modes = calibrated(model, folder / "gate", folder) if {"gate", "loop"} & set(parts) else {}
        if "gate" in parts:
            yield "gate", gate(modes, folder, rounds)
        if "loop" in parts:
            yield "loop", loop(modes["auto"], folder, rounds)
        if "shared" in parts:
            yield "shared", shared(model, folder, 20, rounds)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "eval.json")
    parser.add_argument("--questions", type=int, default=240, help="of gate, three a video")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is stated")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts; without torch, loop is left out if not named")
    options = parser.parse_args()
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch and "loop" in (options.only or ()):
        parser.error("loop measures transformers with torch, which is not installed: pip install torch")
    parts = options.only or [part for part in PARTS if has_torch or part != "loop"]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()}, Python {platform.python_version()}, "
        f"jax {jax.__version__}",
    }
    if not has_torch:
        print("loop is left out: torch is not installed", flush=True)
    for part, figures in measured(parts, options.questions, options.rounds):
        result[part] = figures
        print(f"{part}: {figures['ratio']:.2f}, {figures['aim']} is the aim ({figures['what']})", flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
