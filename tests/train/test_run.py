"""Runs that are killed, told to stop, or find the disk full: a second start ends with what one start would have.

The trainer here is a few arrays; the run, its checkpoints, metrics and stream are the real ones. As a script this file
is such a run, for the processes that are killed.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.stream import PromptStream, StreamConfig
from videoauto_jax.errors import CheckpointError
from videoauto_jax.files import write_atomic
from videoauto_jax.sharding import make_mesh
from videoauto_jax.train import run as run_module
from videoauto_jax.train.recipe import SFTConfig
from videoauto_jax.train.run import Run, train_run
from videoauto_jax.train.step import TrainState
from videoauto_jax.train.stopping import StopRequest

STEPS = 30


class Encoder:
    def encode(self, messages):
        tokens = np.full(3, int(messages[0]["content"]), np.int32)
        return Encoded(tokens, np.stack([tokens] * 3), np.full_like(tokens, -1), None, 3, "")


class Toy:
    """Mixes what it reads into an array; `during(index, place)` is called before and after it does."""

    def __init__(self, pause=0.0, during=lambda index, place: None):
        samples = [Sample([{"role": "user", "content": str(n)}], n, "math", "toy", f"toy/{n}") for n in range(11)]
        self.stream = PromptStream(samples, Encoder(), StreamConfig(4, seed=3, workers=0))
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.total, self.learner, self.pause, self.during = STEPS, self, pause, during
        self.counters, self.stop = {"num_tokens": 0.0}, StopRequest()

    def initial_state(self):
        return TrainState({"w": jnp.zeros(1000)}, {"steps": jnp.zeros((), jnp.int32)})

    def model(self, trainable):
        return trainable

    def step(self, state, index):
        numbers = [sample.answer for _, sample, _ in next(self.stream)]
        self.counters["num_tokens"] += sum(numbers)
        self.during(index, "before")
        self.stop.check()
        time.sleep(self.pause)
        noise = jax.random.normal(jax.random.key(sum(numbers)), (1000,))
        state = TrainState({"w": 0.9 * state.trainable["w"] + noise}, {"steps": state.opt_state["steps"] + 1})
        self.during(index, "after")
        return state, {"loss": jnp.sum(state.trainable["w"]), "num_tokens": self.counters["num_tokens"]}

    def evaluate(self, state, done):
        return {} if done % 7 else {"eval/accuracy_auto": (float(jnp.sin(done * 1.0)), 1.0)}


class ToyRun(Run):
    def export(self, model):
        self.model_folder.mkdir(exist_ok=True)
        np.save(self.model_folder / "w.npy", np.asarray(model["w"]))
        write_atomic(self.model_folder / "config.json", "{}")


def start(folder, **options):
    with ToyRun(SFTConfig(model=str(folder.parent), output=str(folder), save_every=4), lines=False) as run:
        return run.finished() or train_run(run, Toy(**options))


def results(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    timeless = [{k: v for k, v in line.items() if not k.startswith(("time", "seconds"))} for line in lines]
    return timeless, (folder / "model" / "w.npy").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder / "run")
    steps = sorted(int(path.name) for path in (folder / "run" / "checkpoints").iterdir() if path.name.isdecimal())
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "seconds/save" in line][:4] == [5, 8, 9, 13]  # after 4, 7, 8, 12
    assert steps == [14, STEPS]  # sin(14) is the best of sin(7), sin(14), …, and the newest one is kept
    return results(folder / "run")


def test_killed_at_random_moments(whole, tmp_path):
    folder, rng = tmp_path / "run", random.Random(time.time_ns())
    for _ in range(4):
        process = subprocess.Popen([sys.executable, __file__, str(folder)], env=os.environ | {"PYTHONPATH": ""})
        before = _lines(folder)
        while process.poll() is None and _lines(folder) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.wait()
    subprocess.run([sys.executable, __file__, str(folder)], check=True)
    assert results(folder) == whole


def _lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_second_start_goes_on(number, place, whole, tmp_path):
    def stop(index, where):
        if (index, where) == (9, place):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with contextlib.nullcontext() if number == signal.SIGTERM else pytest.raises(KeyboardInterrupt):
        assert start(tmp_path / "run", during=stop) is False
    assert signal.getsignal(number) is before and not (tmp_path / "run" / "model").exists()
    done = 9 if place == "before" else 10  # a unit that has begun to change the state is ended first
    assert (tmp_path / "run" / "checkpoints" / str(done)).is_dir() and _lines(tmp_path / "run") == done
    assert start(tmp_path / "run")
    assert results(tmp_path / "run") == whole


def test_a_full_disk_is_loud_and_ends_nothing(whole, tmp_path, monkeypatch, capsys):
    class Full(run_module.Checkpoints):
        def save(self, step, arrays, state):
            if step < 20:
                raise CheckpointError("could not save: the disk is full", where=self.folder, fix="Free some space")
            super().save(step, arrays, state)

    monkeypatch.setattr(run_module, "Checkpoints", Full)
    assert start(tmp_path / "run")
    assert results(tmp_path / "run") == whole
    assert "NOT SAVED, training goes on: could not save: the disk is full" in capsys.readouterr().out


if __name__ == "__main__":
    start(Path(sys.argv[1]), pause=0.02)
