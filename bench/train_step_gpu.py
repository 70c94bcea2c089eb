"""The policy step in the models' real sizes on one GPU: its MFU, and one group row against one row per branch.

    python bench/train_step_gpu.py [--only 2b …] [--seconds 500]     one H100: random weights, bfloat16
    python bench/train_step_gpu.py --aot                             compiles the same programs for an H100 elsewhere

A step is loss, gradient, clipping and AdamW of one group of 16 branches, activations recomputed. Qwen3-VL-2B trains
whole, with float32 masters; 7B and 8B train adapters. MFU counts what has to be computed once: a prompt's tokens once
per group in both layouts, no padding, no recomputation (`train.flops.group_update_flops`): the rows' MFU says what is
left of it where every branch brings its prompt. Loss and gradient norm of both layouts are compared first. Every record
is written at once; no new one begins after `--seconds`.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

if "--aot" in sys.argv:
    import ahead  # sets the environment that jax reads when it is imported

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from train_step import LOSS, Case, ordinary

from videoauto_jax.models.config import QwenVLConfig, parse_config
from videoauto_jax.models.hf import abstract_model
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.train.flops import group_update_flops, utilisation
from videoauto_jax.train.lora import LoraConfig
from videoauto_jax.train.parameters import TrainableConfig
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.step import Learner, TrainState, _grpo_step

ROOT = Path(__file__).parents[1]
BRANCHES, BRANCH, TURNS = 16, 256, 3


@dataclasses.dataclass(frozen=True)
class Work:
    """A model, the length of its prompt, whether adapters train, and the parts that one row per branch comes in.

    Attributes:
        rows: parts of the update with a row per branch, one after the other; None leaves that layout out.
        context: GPUs that share the group's row; more than one are only compiled for.
    """

    name: str
    model: str
    prompt: int
    lora: bool
    rows: int | None
    context: int = 1


WORKS = (
    Work("2b, 8k", "qwen3-vl-2b-instruct", 8192, False, 4),
    Work("8b, 8k", "qwen3-vl-8b-instruct", 8192, True, 4),
    Work("2b, 32k", "qwen3-vl-2b-instruct", 32768, False, 16),
    Work("7b, 8k", "qwen2.5-vl-7b-instruct", 8192, True, None),
    Work("8b, 32k", "qwen3-vl-8b-instruct", 32768, True, 16),
    Work("8b, 32k, context 8", "qwen3-vl-8b-instruct", 32768, True, None, context=8),
    Work("8b, 128k, context 8", "qwen3-vl-8b-instruct", 131072, True, None, context=8),
)


class Program:
    """The update of one work in one layout.

    Args:
        work: what.
        config: the model's facts.
        model: with weights, or abstract.
        rows: one row per branch, in `work.rows` parts.
    """

    def __init__(self, work: Work, config: QwenVLConfig, model: QwenVL, rows: bool):
        self.case = Case(config.text.vocab_size, work.prompt, BRANCH, BRANCHES)
        subgroups, accumulate = (BRANCHES, work.rows) if rows else (1, 1)
        shared = {"model": "", "output": "", "remat": True, "loss": LOSS, "trainable": TrainableConfig()}
        parts = {"prompts": 1, "updates": 1, "subgroups": subgroups, "accumulate": accumulate}
        recipe = GRPOConfig(**shared, **parts, lora=LoraConfig(rank=32, alpha=64) if work.lora else None)
        self.learner = Learner.create(model, recipe, 10)
        self.learner.keep = False  # the reference is not a part of this step
        batch = self.case.batch(subgroups)
        self.batch, self.signals = ordinary(batch) if rows else batch, self.case.signals(subgroups)

    def step(self, state: TrainState, frozen: nnx.State, batch, signals) -> tuple[TrainState, dict]:
        learner = self.learner
        fixed = learner.graph, learner.optimizer, state, frozen, batch, None, signals, LOSS
        options = {"temperature": 1.0, "remat": True, "accumulate": learner.accumulate}
        return _grpo_step.__wrapped__(*fixed, **options, places=(None,) * len(jax.tree.leaves(state)))

    def shapes(self) -> tuple:
        """What `step` takes, as shapes."""
        optimizer = self.learner.optimizer
        state = jax.eval_shape(lambda weights: TrainState(weights, optimizer.init(weights)), self.learner.initial)
        return state, self.learner.frozen, self.batch, self.signals


def config_of(work: Work) -> QwenVLConfig:
    return parse_config(json.loads((ROOT / "configs" / "models" / f"{work.model}.json").read_text()))


def compile_ahead(work: Work, rows: bool) -> dict:
    """Bytes that the update needs on each H100."""
    config = config_of(work)
    model = abstract_model(config, "bfloat16", "bfloat16" if work.lora else "float32")
    program = Program(work, config, model, rows)
    function = jax.jit(program.step, donate_argnums=0)
    memory = ahead.compile_for(ahead.mesh("h100", {"context": work.context}), function, *program.shapes())["memory"]
    return memory | {"gib": round(sum(memory.values()) / 2**30, 1)}


def random_model(config: QwenVLConfig, param_dtype: str) -> QwenVL:
    """Weights on the device, made there."""
    return jax.jit(lambda: QwenVL(config, dtype=jnp.bfloat16, param_dtype=jnp.dtype(param_dtype), rngs=nnx.Rngs(0)))()


def measure(work: Work, rows: bool) -> dict:
    """Seconds of the update, and its MFU."""
    config = config_of(work)
    program = Program(work, config, random_model(config, "bfloat16" if work.lora else "float32"), rows)
    state, frozen = program.learner.initial_state(), program.learner.frozen
    batch, signals = jax.device_put((program.batch, program.signals))
    start = time.perf_counter()
    update = jax.jit(program.step, donate_argnums=0).lower(state, frozen, batch, signals).compile()
    compiled, seconds, found = time.perf_counter() - start, [], {}
    for _ in range(2 if rows else 1 + TURNS):  # the first is not counted
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(update(state, frozen, batch, signals))
        seconds.append(time.perf_counter() - start)
        found = found or {name: float(metrics[name][0]) for name in ("loss", "grad_norm")}
    flops = group_update_flops(config.text, [work.prompt], [[BRANCH] * BRANCHES], adapters=work.lora)
    median = statistics.median(seconds[1:])
    plan = update.memory_analysis()
    needed = (
        plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    )
    timed = {"seconds": seconds, "median_seconds": median, "mfu": utilisation(flops, median)}
    return found | timed | {"compile_seconds": compiled, "gib": round(needed / 2**30, 1)}


def compare(records: list[dict]) -> None:
    """Checks a work's two layouts against each other, and states their ratio."""
    by_layout = {record["layout"]: record for record in records if "loss" in record}
    if len(by_layout) < 2:
        return
    group, rows = by_layout["group"], by_layout["rows"]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(rows[name], group[name], rtol=0.03, err_msg=name)  # bfloat16
    rows["over_group"] = rows["median_seconds"] / group["median_seconds"]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aot", action="store_true", help="compile only, for an H100 that is not here")
    parser.add_argument("--only", nargs="+", default=[], help="works whose names begin so")
    parser.add_argument("--seconds", type=float, default=500, help="begin nothing new after that")
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "train_step_gpu.json")
    options, start, found = parser.parse_args(), time.perf_counter(), []
    result = json.loads(options.result.read_text()) if options.result.exists() else {}
    facts = {"date": time.strftime("%Y-%m-%d"), "jax": jax.__version__, "branches": [BRANCHES, BRANCH]}
    facts["device"] = "h100, compiled only" if options.aot else jax.devices()[0].device_kind
    chosen = [work for work in WORKS if not options.only or work.name.startswith(tuple(options.only))]
    chosen = [work for work in chosen if options.aot or work.context == 1]
    for work in chosen:
        for layout in ("group", "rows") if work.rows else ("group",):
            if time.perf_counter() - start > options.seconds:
                continue
            act = compile_ahead if options.aot else measure
            found.append({"work": work.name, "lora": work.lora, "layout": layout, **act(work, layout == "rows")})
            compare([record for record in found if record["work"] == work.name])
            result["compiled" if options.aot else "measured"] = facts | {"records": found}
            options.result.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(found[-1]), flush=True)


if __name__ == "__main__":
    main()
