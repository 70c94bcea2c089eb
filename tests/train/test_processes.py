"""Two processes of four devices are one process of eight: metrics, weights, and what becomes of signals and errors.

As a script this file is such a process: it trains, and does to itself what the test wants to see the end of.
"""

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from videoauto_jax.config import dump_config, load_config
from videoauto_jax.data.annotations import ImageBudget
from videoauto_jax.data.datasets import DatasetConfig
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.rewards import Rewards
from videoauto_jax.sharding import MeshConfig
from videoauto_jax.train import loop
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.loss_config import GRPOLossConfig
from videoauto_jax.train.optimizer import OptimizerConfig
from videoauto_jax.train.recipe import GRPOConfig, RolloutConfig, SFTConfig
from videoauto_jax.train.sft import SFTTrainer, train_sft

KILLED = -signal.SIGKILL


class Pool:
    """Grades like a coin that always falls the same way for the same text."""

    def __init__(self, workers, timeout_s):
        pass

    def score_many(self, items, *, profile, form):
        return [Rewards(hashlib.sha256(text.encode()).digest()[0] / 255, 0.0, 0.0) for text, _, _ in items]

    def warm(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def data(folder, name, images):
    """Nine questions with demonstrations; with images, six are about one, of which one is damaged."""
    rng, records = np.random.default_rng(0), []
    for n in range(9):
        record = {"problem_type": "exact_match", "question": f"What is {n}?", "answer": "A", "response": f"It is {n}."}
        if images and n % 3:
            record["image"] = f"{n}.png"
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / record["image"])
        records.append(json.dumps(record))
    (folder / "7.png").write_bytes(b"damaged")
    (folder / f"{name}.jsonl").write_text("\n".join(records))
    source = DatasetConfig(loader="Plain", anno_path=str(folder / f"{name}.jsonl"), data_path=str(folder))
    return DataConfig(
        names=(name,), sets={name: source}, prompt="direct", image=ImageBudget(min_pixels=4096, max_pixels=4096),
        workers=0, prompt_lengths=(256,), patch_counts=(64,), branch_lengths=(256,),
    )  # fmt: skip


def recipes(model, folder):
    """Two supervised steps on text, and two rounds on text and images."""
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-3)  # with 1e-8, gradients that are round-off would count
    shared = {
        "model": str(model), "mesh": MeshConfig(fsdp=4, tensor=2), "dtype": "float32", "remat": False,
        "optimizer": optimizer, "save_every": 1,
    }  # fmt: skip
    own = {"steps": 2, "rows": 4, "questions": 1, "max_response_tokens": 200, "data": data(folder, "text", False)}
    sft = SFTConfig(output=str(folder / "sft"), **own, **shared)
    own = {"rounds": 2, "prompts": 4, "updates": 1, "data": data(folder, "toy", True)}
    rollout, loss = RolloutConfig(branches=2, max_new_tokens=6), GRPOLossConfig(beta=0.0)
    return sft, GRPOConfig(output=str(folder / "grpo"), rollout=rollout, loss=loss, **own, **shared)


def results(folder):
    """What a run leaves: metrics without times, the exported weights, and who was skipped."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if not k.startswith(("seconds", "time"))} for line in lines]
    weights = load_file(folder / "model" / "model.safetensors")
    log = folder / "skipped.jsonl"
    return timeless, weights, [json.loads(line)["id"] for line in log.read_text().splitlines()] if log.exists() else []


def start(act, folder):
    """The two processes of a job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "PYTHONPATH": ""}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    # What the first job has compiled the second one need not.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, __file__, act, str(folder)]
    return [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment | {"JAX_PROCESS_ID": n})
        for n in "01"
    ]


def end(processes):
    """Exit statuses, and what was written to stderr."""
    try:
        texts = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], texts


def test_two_processes_are_one(tiny_folder, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for config, name in zip(recipes(tiny_folder, tmp_path / "two"), ("sft", "grpo")):
        (tmp_path / "two" / f"{name}.yaml").write_text(dump_config(config))
    first = start("killed", tmp_path / "two")
    monkeypatch.setattr(loop, "RewardPool", Pool)
    sft, grpo = recipes(tiny_folder, tmp_path / "one")
    assert train_sft(sft, lines=False) and train_grpo(grpo, lines=False)

    status, texts = end(first)
    assert status[1] == KILLED and status[0] == 1, texts[0]
    status, texts = end(start("broken", tmp_path / "two"))
    assert status == [1, 1], texts
    assert [text.count("error: process 1: RuntimeError: broken") for text in texts] == [1, 0]
    for name in ("sft", "grpo"):
        (metrics, weights, skipped), found = results(tmp_path / "one" / name), results(tmp_path / "two" / name)
        assert len(found[0]) == 2 and found[2] == skipped and ("toy/8" in skipped) == (name == "grpo")
        for mine, line in zip(found[0], metrics):
            assert mine == pytest.approx(line, abs=1e-5, nan_ok=True)
        for key, tensor in weights.items():
            np.testing.assert_allclose(found[1][key], tensor, atol=1e-5, err_msg=key)


def before(index, act):
    """Has process 1 do something before a step of supervised training."""

    def step(self, state, at, real=SFTTrainer.step):
        if at == index and jax.process_index() == 1:
            act()
        return real(self, state, at)

    SFTTrainer.step = step


def fail():
    raise RuntimeError("broken")


if __name__ == "__main__":
    act, folder, loop.RewardPool = sys.argv[1], Path(sys.argv[2]), Pool
    sft, grpo = load_config(SFTConfig, folder / "sft.yaml"), load_config(GRPOConfig, folder / "grpo.yaml")
    if act == "killed":
        before(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not train_sft(sft, lines=False), "one process was told to stop"
        before(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train_sft(sft, lines=False)
    else:
        assert train_sft(sft, lines=False) and train_grpo(grpo, lines=False)
        before(0, fail)
        train_sft(dataclasses.replace(sft, output=str(folder / "broken")), lines=False)
