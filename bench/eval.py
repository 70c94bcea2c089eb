"""What an evaluation saves, end to end: files on disk to a table, as ratios measured in one run.

    python bench/eval.py [--out bench/results/eval.json]

A tiny random checkpoint answers a small Video-MME made of rendered videos. `gate`: stopping where the first answer is
sure (60 % of the questions, by the choice of the threshold) against always writing the whole thought, which the length
limit ends. `shared`: 20 questions about one video against 20 about 20 videos, first answers only. Every run is repeated
after one that compiles; the median ratio is stated, and the share of the time in which no prompt was ready.
"""

import argparse
import dataclasses
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
from videoauto_jax.data.annotations import VideoBudget
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.eval.config import BenchmarkConfig, EvalConfig
from videoauto_jax.eval.runner import evaluate, read_records
from videoauto_jax.sampling.sampler import SamplingConfig

TEXT = "\\boxed{A}<think>It looks like 3 red and 4 blue dots.</think>\\boxed{B} What colour is the lamp at second 5?"
OPTIONS = ["A. one", "B. two", "C. three", "D. four"]
ROUNDS = 3


def write_benchmark(folder: Path, videos: int, questions: int, size: int) -> None:
    """A Video-MME of so many videos and questions, the questions dealt to the videos in turn."""
    rows = []
    (folder / "data").mkdir(parents=True)
    for v in range(videos):
        write_video(folder / "data" / f"v{v}.mp4", render(make_scene(v), size))
    for n in range(questions):
        about = {"duration": "short", "domain": "Knowledge", "sub_category": "Astronomy", "task_type": "OCR Problems"}
        question = f"Question {n}: in how many seconds is the lamp red?"
        rows.append({"question": question, "options": OPTIONS, "answer": "A", "videoID": f"v{n % videos}", **about})
    (folder / "test.json").write_text(json.dumps(rows))


def recipe(model: Path, path: Path, tokens: int, slots: int, **sampling) -> EvalConfig:
    """An evaluation of that benchmark; the format is forced, as the model is random."""
    budget = VideoBudget(16 * 1024, 768 * 1024, 4096 * 1024, max_frames=32)
    settings = SamplingConfig(
        max_new_tokens=tokens, prompts=slots, temperature=1.0, forced_format=True, **{"mode": "record", **sampling}
    )
    data = DataConfig(video=budget, max_prompt_tokens=16384, workers=len(os.sched_getaffinity(0)))
    benchmarks = {"videomme": BenchmarkConfig(path=str(path))}
    return EvalConfig(str(model), "", data, settings, benchmarks=benchmarks, dtype="float32", graders=1)


def timed(config: EvalConfig, folder: Path) -> tuple[float, dict]:
    """Seconds of a whole evaluation in a new folder, and its summary."""
    output = tempfile.mkdtemp(dir=folder)
    os.rmdir(output)
    start = time.perf_counter()
    summary = evaluate(dataclasses.replace(config, output=output))
    return time.perf_counter() - start, summary | {"output": output}


def gate(model: Path, folder: Path, questions: int, tokens: int, slots: int) -> dict:
    """`auto` against `second`."""
    write_benchmark(folder / "gate", questions, questions, 96)
    second = recipe(model, folder / "gate", tokens, slots, mode="second")
    _, summary = timed(second, folder)
    confidences = [record["confidence"] for record in read_records(summary["output"])]
    threshold = float(np.quantile(confidences, 0.4))
    auto = recipe(model, folder / "gate", tokens, slots, mode="auto", threshold=threshold)
    timed(auto, folder)
    pairs = [(timed(second, folder), timed(auto, folder)) for _ in range(ROUNDS)]
    (full, whole), (short, early) = pairs[0]
    found = whole["benchmarks"]["videomme"]["modes"]["second"], early["benchmarks"]["videomme"]["modes"]["auto"]
    return {
        "what": f"{questions} questions about as many videos, {slots} slots, at most {tokens} tokens",
        "second_seconds": statistics.median(pair[0][0] for pair in pairs),
        "auto_seconds": statistics.median(pair[1][0] for pair in pairs),
        "ratio": statistics.median(pair[1][0] / pair[0][0] for pair in pairs),
        "tokens": [mode["tokens"]["mean"] for mode in found],
        "think_ratio": found[1]["think_ratio"],
        "waited_share": [summary["waited"] / seconds for seconds, summary in ((full, whole), (short, early))],
    }


def shared(model: Path, folder: Path, questions: int, slots: int) -> dict:
    """Questions about one video against as many about as many videos."""
    seconds = {}
    for videos in (questions, 1):
        place = folder / f"shared-{videos}"
        write_benchmark(place, videos, questions, 224)
        config = recipe(model, place, 24, slots, mode="first")
        timed(config, folder)
        seconds[videos] = statistics.median(timed(config, folder)[0] for _ in range(ROUNDS))
    return {
        "what": f"{questions} questions, first answers only, {slots} slots",
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
        make_checkpoint(folder / "model", [TEXT] * 200, 0, TinySpec())
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()}, Python {platform.python_version()}, "
            f"jax {jax.__version__}",
            "gate": gate(folder / "model", folder, 40, 100, 8),
            "shared": shared(folder / "model", folder, 20, 8),
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
