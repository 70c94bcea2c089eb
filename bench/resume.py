"""A GRPO run killed with SIGKILL at random moments, against the same run left alone: are metrics and weights the same?

    python bench/resume.py [--kills 20] [--rounds 12] [--seed 0] [--result bench/results/resume.json]

The recipe is the quickstart's GRPO stage with few videos, an untrained model and a checkpoint every second round.
Rewards are those of the recipe less an over-long penalty, by which even an untrained model's branches differ. All runs
share a compilation cache. Each start is killed while it starts, or once it has done one to three rounds and then a
uniformly random part of another: writing, scoring, updating, saving. Where a run ends before that, the next one begins
in a new folder. So many kills are made as are asked for; every run that was killed is compared.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from videoauto_jax.cli.quickstart.spec import WorldSpec
from videoauto_jax.cli.quickstart.tiny import TinySpec, make_checkpoint
from videoauto_jax.cli.quickstart.tokenizer import world_texts
from videoauto_jax.cli.quickstart.world import data_sets, make_world
from videoauto_jax.config import dump_config, load_config
from videoauto_jax.train.recipe import GRPOConfig


def make_recipe(folder: Path, rounds: int, seed: int) -> Path:
    """A world, a tiny checkpoint and the recipe of the run without its output."""
    make_world(folder / "world", seed, WorldSpec(train_videos=24, heldout_videos=2), report=lambda *_: None)
    spec = TinySpec(hidden=64, intermediate=64, layers=2, heads=2, kv_heads=1, vision_hidden=32, vision_depth=1)
    make_checkpoint(folder / "base", world_texts(folder / "world"), seed, spec)
    changes = [f"model={folder / 'base'}", "output=RUN", f"rounds={rounds}", f"seed={seed}", "save_every=2"]
    changes += ["prompts=8", "rollout.branches=4", "rollout.max_new_tokens=40", "reward.overlong_buffer=40"]
    recipe = load_config(GRPOConfig, "quickstart/train", changes)
    sets = data_sets(folder / "world", "train")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sets=sets, names=tuple(sets)))
    (folder / "recipe.yaml").write_text(dump_config(recipe))
    return folder / "recipe.yaml"


def start(recipe: Path, output: Path) -> subprocess.Popen:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(recipe.parent / "cache")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "videoauto_jax.cli.main", "train", "-c", str(recipe), f"output={output}"]
    return subprocess.Popen(command, env=os.environ | cache, stdout=subprocess.DEVNULL)


def whole_run(recipe: Path, output: Path) -> float:
    started = time.perf_counter()
    if start(recipe, output).wait():
        raise SystemExit("the undisturbed run failed")
    return time.perf_counter() - started


class Watch:
    """Counts the rounds that a process adds to a log that may shrink first, when it goes back to its checkpoint."""

    def __init__(self, output: Path):
        self._file = output / "metrics.jsonl"
        self.rounds, self.added = self._count(), 0

    def look(self) -> int:
        """Rounds added so far."""
        rounds = self._count()
        self.added, self.rounds = self.added + max(0, rounds - self.rounds), rounds
        return self.added

    def _count(self) -> int:
        return self._file.read_bytes().count(b"\n") if self._file.exists() else 0


def kill_somewhere(recipe: Path, output: Path, rng: random.Random, pace: dict[str, float]) -> dict | None:
    """Starts the run, kills it at a random moment of its start or of one of its first rounds, and tells when.

    Returns:
        None if the run ended before its moment came.

    Raises:
        SystemExit: it did neither for ten times as long as the undisturbed run took, or it failed.
    """
    process, watch, began = start(recipe, output), Watch(output), time.perf_counter()
    wanted = rng.choice((0, 1, 2, 3))  # rounds after which its moment comes: progress, however slow the machine is
    delay = rng.uniform(0, pace["round"] if wanted else pace["start"])
    while watch.look() < wanted and process.poll() is None:
        if time.perf_counter() - began > 10 * pace["whole"]:
            process.kill()
            raise SystemExit("the run makes no progress")
        time.sleep(0.02)
    moment = time.perf_counter() + delay
    while process.poll() is None and time.perf_counter() < moment:
        watch.look()
        time.sleep(0.02)
    if process.poll() is None:
        process.kill()
    if process.wait() == -signal.SIGKILL:
        watch.look()
        seconds = round(time.perf_counter() - began, 2)
        return {"rounds_done": watch.added, "seconds_after_the_last": round(delay, 2), "seconds": seconds}
    if process.returncode:
        raise SystemExit(f"the run failed with status {process.returncode}")
    return None


def results(output: Path) -> tuple[list[dict], str]:
    """Metrics without times, and a digest of the exported weights."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "seconds", "memory")
    timeless = [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]
    digest = hashlib.sha256()
    for file in sorted((output / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return timeless, digest.hexdigest()


def measured_pace(whole: float, output: Path) -> dict[str, float]:
    """Seconds of an undisturbed run: all of it, one round, and what comes before the first."""
    times = [json.loads(line)["time"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    each = (times[-1] - times[0]) / (len(times) - 1)
    return {"whole": whole, "round": each, "start": max(0.0, whole - each * len(times))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 20), ("rounds", 12), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    arguments, kills = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng, run = Path(temporary), random.Random(arguments.seed), 0
        recipe = make_recipe(folder, arguments.rounds, arguments.seed)
        whole_run(recipe, folder / "warm")  # fills the compilation cache
        pace = measured_pace(whole_run(recipe, folder / "whole"), folder / "whole")
        while len(kills) < arguments.kills:
            killed = kill_somewhere(recipe, folder / "killed" / str(run), rng, pace)
            kills += [{"run": run} | killed] if killed else []
            run += killed is None
            print(kills[-1] if killed else "ended before its moment came", flush=True)
        if start(recipe, folder / "killed" / str(run)).wait():
            raise SystemExit("the killed run failed")
        used = {kill["run"] for kill in kills}
        same = [results(folder / "killed" / str(each)) == results(folder / "whole") for each in sorted(used)]
        moved = results(folder / "whole")[0]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python bench/resume.py --kills {arguments.kills} --rounds {arguments.rounds}",
        "cores": len(os.sched_getaffinity(0)),
        "undisturbed": {name: round(seconds, 2) for name, seconds in pace.items()},
        "kills": kills,
        "runs_compared": len(same),
        "identical_metrics_and_weights": all(same),
        "rounds_with_a_gradient": sum(line["grad_norm"] > 0 for line in moved),
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if not result["identical_metrics_and_weights"]:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    main()
