"""A GRPO run killed with SIGKILL at random moments, against the same run left alone: are metrics and weights the same?

    python bench/resume.py [--kills 20] [--rounds 8] [--seed 0] [--result bench/results/resume.json]

The recipe is the quickstart's GRPO stage with few videos, an untrained model and a checkpoint every round. Rewards are
those of the recipe less an over-long penalty, by which even an untrained model's branches differ. Both runs share a
compilation cache, so that a killed run gets somewhere. Moments are uniform over the time of the undisturbed run.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
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
    changes = [f"model={folder / 'base'}", "output=RUN", f"rounds={rounds}", f"seed={seed}", "save_every=1"]
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


def results(output: Path) -> tuple[list[dict], str]:
    """Metrics without times, and a digest of the exported weights."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "seconds", "memory")
    timeless = [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]
    digest = hashlib.sha256()
    for file in sorted((output / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return timeless, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 20), ("rounds", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    arguments, kills = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = make_recipe(folder, arguments.rounds, arguments.seed)
        whole_run(recipe, folder / "warm")  # fills the compilation cache
        seconds, rng = whole_run(recipe, folder / "whole"), random.Random(arguments.seed)
        while len(kills) < arguments.kills:
            output = folder / "killed" / str(sum(kill["ended"] for kill in kills))
            process, moment = start(recipe, output), rng.uniform(0, seconds)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
            ended = process.wait() == 0
            lines = output / "metrics.jsonl"
            rounds = lines.read_bytes().count(b"\n") if lines.exists() else 0
            kills.append({"after_seconds": round(moment, 2), "rounds_logged": rounds, "ended": ended})
        if start(recipe, output).wait():
            raise SystemExit("the killed run failed")
        outputs = [path for path in (folder / "killed").iterdir() if (path / "model" / "config.json").exists()]
        same = [results(path) == results(folder / "whole") for path in outputs]
        moved = results(folder / "whole")[0]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python bench/resume.py --kills {arguments.kills} --rounds {arguments.rounds}",
        "undisturbed_seconds": round(seconds, 2),
        "kills": [kill for kill in kills if not kill["ended"]],
        "ended_before_the_kill": sum(kill["ended"] for kill in kills),
        "runs_compared": len(same),
        "identical_metrics_and_weights": all(same) and len(same) > 0,
        "rounds_with_a_gradient": sum(line["grad_norm"] > 0 for line in moved),
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if not result["identical_metrics_and_weights"]:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    main()
