"""One policy update of one group: its prompt computed once, against one row per branch, and against torch.

    python bench/train_step.py [--prompt 1024] [--branch 128] [--branches 16] [--turns 5] [--result FILE]

The same tiny Qwen3-VL, tokens, old and reference log-probabilities for all; float32, text only. `group` is the compiled
update of training (loss, gradient, AdamW). `rows` is the same update on ordinary causal rows, the prompt repeated in
each; `single` too, with the attention of groups on rows of one branch. `torch` is the loss as TRL computes it
(transformers' model, the last logits only, selective log-softmax, clipped objective with k3) and its backward pass,
without an optimiser step. They take turns; medians are stated. Values of the losses, and norms of the gradients but
torch's, are compared before anything is timed. Real sizes on a GPU: `train_step_gpu.py`.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from videoauto_jax.cli.quickstart.tiny import TinySpec, make_checkpoint
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.train.groups import GroupBatch, pack_groups
from videoauto_jax.train.grpo import GRPOLossConfig, group_advantages
from videoauto_jax.train.optimizer import OptimizerConfig
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.step import GroupSignals, Learner

SPEC = TinySpec(hidden=256, intermediate=768, layers=4, heads=8, kv_heads=4)
LOSS = GRPOLossConfig(beta=0.01)


class Case:
    """One group of random tokens.

    Args:
        vocabulary: of the model.
        prompt, branch, branches: tokens of the prompt and of each branch, and the number of branches.
    """

    def __init__(self, vocabulary: int, prompt: int, branch: int, branches: int):
        rng = np.random.default_rng(0)
        self.prompt = rng.integers(0, vocabulary - 64, (1, prompt)).astype(np.int32)
        self.branches = rng.integers(0, vocabulary - 64, (branches, branch)).astype(np.int32)
        self.advantages = np.asarray(group_advantages(rng.uniform(0, 3, branches), branches), np.float32)
        self.old, self.reference = rng.normal(-5, 0.1, (2, 1, branches, branch)).astype(np.float32)

    def batch(self, subgroups: int) -> GroupBatch:
        length = self.prompt.shape[1]
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), (3, 1, length))
        inputs = ModelInputs(self.prompt, positions, np.ones_like(self.prompt), np.full_like(self.prompt, -1), None)
        width, count = self.branches.shape[1], len(self.branches)
        row = width * count // subgroups
        return pack_groups(
            inputs, [length], [list(self.branches)], bound=width, count=count, lengths=[row], subgroups=subgroups
        )

    def signals(self, subgroups: int) -> GroupSignals:
        count = len(self.branches) // subgroups
        shape = (subgroups, count)
        log_probs = (array.reshape(*shape, -1) for array in (self.old, self.old, self.reference))
        return GroupSignals(self.advantages.reshape(shape), np.ones(shape, bool), *log_probs)


def ordinary(batch: GroupBatch) -> GroupBatch:
    """Rows of one branch as plain causal rows."""
    segments = (batch.inputs.segment_ids > 0).astype(np.int32)
    inputs = dataclasses.replace(batch.inputs, segment_ids=segments)
    return dataclasses.replace(batch, inputs=inputs, prompt_length=None, branch_bound=None)


def jax_update(case: Case, folder: Path, subgroups: int, plain: bool = False) -> Callable[[], dict[str, float]]:
    """A compiled update that starts from the same weights every time."""
    model = load_model(folder, dtype="float32")
    config = GRPOConfig(model="", output="", dtype="float32", remat=False, optimizer=OptimizerConfig(), loss=LOSS)
    learner = Learner.create(model, config, 10)
    batch, signals = case.batch(subgroups), case.signals(subgroups)
    batch, signals = jax.device_put((ordinary(batch) if plain else batch, signals))

    def update() -> dict[str, float]:
        state = learner.initial_state()
        start = time.perf_counter()
        state, metrics = learner.grpo_step(state, learner.frozen, batch, None, signals, LOSS)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        return {"seconds": seconds} | {name: float(metrics[name][0]) for name in ("loss", "grad_norm")}

    return update


def torch_update(case: Case, folder: Path) -> Callable[[], dict[str, float]]:
    """The loss as TRL computes it, forward and backward, on transformers' model."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    ids = np.concatenate([np.repeat(case.prompt, len(case.branches), 0), case.branches], 1).astype(np.int64)
    tokens, width = torch.tensor(ids), case.branches.shape[1]
    old, reference = torch.tensor(case.old[0]), torch.tensor(case.reference[0])
    advantages = torch.tensor(case.advantages)[:, None]

    def update() -> dict[str, float]:
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        logits = model(input_ids=tokens, logits_to_keep=width + 1).logits[:, :-1]
        chosen = torch.gather(logits, 2, tokens[:, -width:, None])[..., 0]
        log_probs = chosen - torch.logsumexp(logits, -1)
        ratio = torch.exp(log_probs - old)
        objective = torch.minimum(ratio * advantages, ratio.clamp(1 - LOSS.epsilon, 1 + LOSS.epsilon) * advantages)
        apart = reference - log_probs
        loss = (LOSS.beta * (torch.exp(apart) - apart - 1) - objective).mean(1).mean()
        loss.backward()
        return {"seconds": time.perf_counter() - start, "loss": float(loss.detach())}

    return update


def measure(case: Case, folder: Path, turns: int, with_torch: bool) -> dict:
    count = len(case.branches)
    updates = {"group": jax_update(case, folder, 1), "rows": jax_update(case, folder, count, plain=True)}
    updates["single"] = jax_update(case, folder, count)
    if with_torch:
        updates["torch"] = torch_update(case, folder)
    first = {name: update() for name, update in updates.items()}  # compiles
    for name, found in first.items():
        for key in found.keys() - {"seconds"}:
            np.testing.assert_allclose(found[key], first["group"][key], rtol=1e-3, err_msg=f"{name} {key}")
    seconds = {name: [] for name in updates}
    for _ in range(turns):
        for name, update in updates.items():
            seconds[name].append(update()["seconds"])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {f"{name}_over_group": medians[name] / medians["group"] for name in updates if name != "group"}
    return {"seconds": seconds, "median_seconds": medians, **ratios, "losses": {k: v["loss"] for k, v in first.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("prompt", 1024), ("branch", 128), ("branches", 16), ("turns", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    arguments = parser.parse_args()
    try:
        import torch

        peer = torch.__version__
    except ImportError:
        peer = None
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, ["what happens in the video", "the lamp is red"], 0, SPEC)
        model = load_model(folder, dtype="float32")
        parameters = sum(array.size for array in parameter_paths(model).values())
        sizes = {name: getattr(arguments, name) for name in ("prompt", "branch", "branches")}
        case = Case(model.config.text.vocab_size, **sizes)
        result = measure(case, Path(folder), arguments.turns, peer is not None)
    command = f"python bench/train_step.py --turns {arguments.turns}"
    facts = {"date": time.strftime("%Y-%m-%d"), "command": command, **sizes}
    facts |= {"parameters": int(parameters), "device": jax.devices()[0].device_kind, "cpu": platform.processor()}
    facts |= {"cores": len(os.sched_getaffinity(0)), "jax": jax.__version__, "torch": peer}
    arguments.result.write_text(json.dumps(facts | result, indent=1) + "\n")
    print(json.dumps(facts | result, indent=1))


if __name__ == "__main__":
    main()
