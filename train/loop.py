"""The GRPO loop: write groups, score them, update on them."""

import dataclasses
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import jax

from videoauto_jax.data.manifest import usable_samples
from videoauto_jax.data.processor import Processor
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.distributed import together
from videoauto_jax.fate import one_fate
from videoauto_jax.models.hf import load_model
from videoauto_jax.rewards import RewardPool, find_grader
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.sharding import batch_shards, make_mesh
from videoauto_jax.train.evaluation import Evaluation, hold_out
from videoauto_jax.train.flops import group_forward_flops, utilisation
from videoauto_jax.train.journal import check_finite, warn_about_equal_rewards, warn_about_sets, write_sample
from videoauto_jax.train.metrics import Metrics
from videoauto_jax.train.optimizer import learning_rate_schedule, step_count
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.rollout import (
    Graded,
    Prompts,
    ScoredGroups,
    grade_groups,
    pack,
    prepare,
    score_share,
    write,
)
from videoauto_jax.train.rollout_metrics import rollout_metrics
from videoauto_jax.train.run import Progress, Run, train_run
from videoauto_jax.train.step import Learner, TrainState
from videoauto_jax.train.stopping import StopRequest

log = logging.getLogger(__name__)
Part = tuple[list[Graded], Prompts]


class GRPOTrainer:
    """One generation round per unit: `prompts` groups, then `updates` optimiser steps on them, `iterations` times.

    Args:
        config: the recipe.
        learner: the compiled passes.
        stream: prompts.
        processor: tokens to text and back.
        pool: grades answers.
        mesh: where arrays go.
        total: rounds.
        folder: where sample rollouts are written.
        evaluation: held-out samples, if there are any.
    """

    def __init__(self, config: GRPOConfig, learner: Learner, stream: PromptStream, processor: Processor,
                 pool: RewardPool, mesh, total: int, folder, evaluation: Evaluation | None = None):  # fmt: skip
        self.config, self.learner, self.stream, self.processor = config, learner, stream, processor
        self.pool, self.mesh, self.total, self.folder, self.evaluation = pool, mesh, total, folder, evaluation
        self.counters, self.stop = {"num_tokens": 0.0}, StopRequest()
        self.reference = learner.initial if config.loss.beta else None
        steps = total * config.updates * config.iterations
        self.schedule = learning_rate_schedule(config.optimizer, steps)
        rollout = config.rollout
        sampling = SamplingConfig(
            mode="record",
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            prompts=config.prompts // config.updates,
            reuse_prefixes=False,
        )
        self.sampler = Sampler(learner.model(learner.initial), processor, sampling)

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict]:
        metrics, clock, start = Metrics(), Clock(), time.perf_counter()
        rate = self.schedule(step_count(state.opt_state))
        self.sampler.model = self.learner.model(state.trainable)
        before = self.sampler.usage.useful, self.sampler.usage.slots
        parts = self._write_groups(index, clock)
        warn_about_equal_rewards([group for part, _ in parts for group in part], index)
        with clock("old"):
            scored = [self._with_old(state, pack(*part, self.config, self.mesh)) for part in parts]
            jax.block_until_ready([part.signals for part in scored])  # or the clock of the update would tell of it
        self.stop.check()
        with clock("update"):
            for part in scored * self.config.iterations:
                arguments = part.batch, part.features, part.signals, self.config.loss
                state, update = self.learner.grpo_step(state, self.learner.frozen, *arguments)
                metrics.add(update)
                ids = [group.item[1].id for group in part.groups]
                check_finite(update, (part.batch, part.signals), ids, self.folder, self.config.max_nonfinite)
        for part in scored:
            metrics.add(rollout_metrics(part.groups))
        if index % self.config.sample_every == 0:
            write_sample(self.folder, index, scored[0].groups[0])
        useful, slots = self.sampler.usage.useful - before[0], self.sampler.usage.slots - before[1]
        metrics.add({"rollout/useful_slots": (useful, slots)})
        told = {"learning_rate": (rate, 1.0), "epoch": (self._epoch(), 1.0), **self._speed(parts, clock, start)}
        return state, {**metrics.pairs(), **told, **clock.pairs()}

    def evaluate(self, state: TrainState, done: int) -> dict:
        if self.evaluation is None or (done % self.config.holdout.every and done != self.total):
            return {}
        return self.evaluation(self.learner.model(state.trainable))

    def _write_groups(self, index: int, clock: "Clock") -> list[Part]:
        """The groups of a round, cut into updates. Those of one update are scored while the next are being written."""
        parts = self._draw(index, 0, clock)
        if self.config.dynamic_sampling != "refill":
            return parts
        groups = [group for part, _ in parts for group in part]
        for attempt in range(1, self.config.max_refills + 1):
            if sum(group.teaches for group in groups) >= self.config.prompts:
                break
            groups += [group for part, _ in self._draw(index, attempt, clock) for group in part]
        # Stable: those that teach first, each kind in the order of drawing.
        chosen = sorted(groups, key=lambda group: not group.teaches)[: self.config.prompts]
        return [(part, self._prepare([group.item for group in part])) for part in self._cut(chosen)]

    def _draw(self, index: int, attempt: int, clock: "Clock") -> list[Part]:
        with clock("input"):
            batches = self._cut(next(self.stream))
        seed = self.config.seed + 1_000_003 * index + 7_368_787 * attempt
        waiting: list[tuple[Future, list, list, Prompts]] = []
        with ThreadPoolExecutor(1) as grader:
            for items in batches:
                self.stop.check()
                with clock("vision"):
                    prompts = jax.block_until_ready(self._prepare(items))
                with clock("rollout"):
                    answers = write(self.sampler, prompts, self.config.rollout.branches, seed)
                scored = grader.submit(score_share, self.pool, items, answers, self.config)
                waiting.append((scored, items, answers, prompts))
            with clock("reward"):
                shares = together(lambda: [scored.result() for scored, *_ in waiting])
        return [
            (grade_groups(scores, items, answers, self.config), prompts)
            for scores, (_, items, answers, prompts) in zip(zip(*shares), waiting)
        ]

    def _prepare(self, items: list) -> Prompts:
        return prepare(items, self.sampler.model, self.processor, self.config, self.mesh)

    def _cut(self, groups: list) -> list[list]:
        size = self.config.prompts // self.config.updates
        return [groups[start : start + size] for start in range(0, len(groups), size)]

    def _with_old(self, state: TrainState, part: ScoredGroups) -> ScoredGroups:
        """Adds the log-probabilities that the loss compares with. With one update the policy is the one that wrote."""
        once = self.config.updates * self.config.iterations == 1
        weights = {"old": None if once else state.trainable, "reference": self.reference}
        found = {
            name: self.learner.log_probs(trainable, self.learner.frozen, part.batch, part.features)
            for name, trainable in weights.items()
            if trainable is not None
        }
        return dataclasses.replace(part, signals=dataclasses.replace(part.signals, **found))

    def _epoch(self) -> float:
        state = self.stream.state()
        return state["epoch"] + state["next_index"] / len(self.stream.samples)

    def _speed(self, parts: list[Part], clock: "Clock", start: float) -> dict:
        """Tokens of the round, prompts counted once, and how fast they were; MFU of the update phase alone."""
        prompts = [len(group.item[2].token_ids) for part, _ in parts for group in part]
        branches = [[len(answer.token_ids) for answer in group.answers] for part, _ in parts for group in part]
        tokens = sum(prompts) + sum(map(sum, branches))
        self.counters["num_tokens"] += tokens
        told = {
            "num_tokens": (self.counters["num_tokens"], 1.0),
            "time/tokens_per_second": (tokens / (time.perf_counter() - start), 1.0),
        }
        text = self.sampler.model.config.text
        work = 3 * self.config.iterations * group_forward_flops(text, prompts, branches)
        mfu, memory = utilisation(work, clock.seconds["update"]), jax.local_devices()[0].memory_stats()
        told |= {} if mfu is None else {"time/mfu": (mfu, 1.0)}
        return told | ({"memory/peak_gib": (memory["peak_bytes_in_use"] / 2**30, 1.0)} if memory else {})


class Clock:
    """Seconds spent in named phases."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str):
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def pairs(self) -> dict[str, tuple[float, float]]:
        """The phases as metrics."""
        return {f"seconds/{phase}": (seconds, 1.0) for phase, seconds in self.seconds.items()}


@one_fate()
def train_grpo(
    config: GRPOConfig, *, force: bool = False, progress: Progress | None = None, lines: bool = True
) -> bool:
    """Runs a recipe, or takes it up where it stopped; writes `output/model`.

    The model and the data are looked at before the folder is claimed: a wrong path leaves nothing behind.

    Args:
        config: the recipe.
        force: begin anew; what the folder holds of a run is lost.
        progress: told after every step.
        lines: print a line for every step.

    Returns:
        Whether the run has ended; False if SIGTERM stopped it.
    """
    mesh = make_mesh(config.mesh)
    warn_about_rows(config, batch_shards(mesh))
    processor = config.data.processor(config.model)
    samples, held_out = hold_out(usable_samples(config.data, processor), config.holdout.samples, config.seed)
    for kind in {sample.problem_type for sample in (*samples, *held_out)}:
        find_grader(kind)  # now, and not when the first such sample is drawn
    warn_about_sets(samples)
    reward = config.reward
    with Run(config, force=force, lines=lines) as run, RewardPool(reward.workers, reward.timeout_s) as pool:
        if run.finished():
            return True
        pool.warm()
        drawn = config.data.stream(config.prompts, config.seed)
        stream = PromptStream(samples, processor, drawn, skip_log=run.folder / "skipped.jsonl")
        rounds = config.rounds or config.epochs * len(stream)
        model = load_model(config.model, mesh, config.dtype, param_dtype=config.param_dtype)
        steps = rounds * config.updates * config.iterations
        learner = Learner.create(model, config, steps, temperature=config.rollout.temperature)
        evaluation = Evaluation(held_out, model, processor, pool, config) if held_out else None
        trainer = GRPOTrainer(config, learner, stream, processor, pool, mesh, rounds, run.folder, evaluation)
        return train_run(run, trainer, progress)


def warn_about_rows(config: GRPOConfig, shards: int) -> None:
    """Says so if the rows of an update cannot be split over the devices: every device then computes all of them."""
    rows = config.rows // config.accumulate
    if rows % shards == 0:
        return
    branches = config.rollout.branches
    fitting = [n for n in range(1, branches + 1) if branches % n == 0 and rows // config.subgroups * n % shards == 0]
    fix = f"subgroups={fitting[0]}" if fitting else f"prompts={config.updates * config.accumulate * shards}"
    log.warning(
        "an update has %d group rows, which %d data shards cannot share: every device computes all of them. "
        "Set %s, or shards of the mesh that divide %d",
        *(rows, shards, fix, rows),
    )
