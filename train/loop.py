"""The GRPO loop: write groups, score them, update on them."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from videoauto_jax.data.processor import Processor
from videoauto_jax.data.selection import usable_samples
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.distributed import together
from videoauto_jax.fate import one_fate
from videoauto_jax.models.hf import load_model
from videoauto_jax.rewards import RewardPool, require_graders
from videoauto_jax.sampling.sampler import Sampler
from videoauto_jax.sampling.schedule import Usage
from videoauto_jax.sharding import batch_shards, make_mesh
from videoauto_jax.train.evaluation import Evaluation, hold_out
from videoauto_jax.train.journal import (
    check_finite,
    warn_about_context,
    warn_about_equal_rewards,
    warn_about_sets,
    warn_about_shards,
    write_sample,
)
from videoauto_jax.train.metrics import Metrics
from videoauto_jax.train.optimizer import learning_rate_schedule, step_count
from videoauto_jax.train.pace import Clock, position, speed
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.rollout import (
    Graded,
    Prompts,
    Rows,
    ScoredGroups,
    Written,
    grade_groups,
    pack,
    prepare,
    score,
    score_share,
    write,
)
from videoauto_jax.train.rollout_metrics import rollout_metrics
from videoauto_jax.train.run import SKIP_LOG, Progress, Run, check_batch, decided_samples, train_run
from videoauto_jax.train.step import Learner, TrainState
from videoauto_jax.train.stopping import StopRequest


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
        sampling = config.rollout.sampling(prompts=config.prompts // config.updates)
        self.sampler = Sampler(learner.model(learner.initial), processor, sampling)
        self.sampler.usage.timed = True

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict]:
        metrics, clock, rate = Metrics(), Clock(), self.schedule(step_count(state.opt_state))
        self.sampler.model = self.learner.model(state.trainable)
        usage = dataclasses.replace(self.sampler.usage)
        with ThreadPoolExecutor(1) as self.grader:
            parts, grades = self._write_groups(index, clock, metrics)
            with clock("old"):
                rows = [pack(part, self.config, self.mesh) for part in parts]
                passes = jax.block_until_ready([self._log_probs(state, one) for one in rows])
            with clock("reward"):
                graded = grades()
        warn_about_equal_rewards([group for part in graded for group in part], index)
        scored = [score(*each, self.config, self.mesh) for each in zip(rows, graded, passes)]
        self.stop.check()
        with clock("update"):
            for part in scored * self.config.iterations:
                state = self._update(state, part, metrics)
        for part in scored:
            metrics.add(rollout_metrics(part.groups))
        if index % self.config.sample_every == 0:
            write_sample(self.folder, index, scored[0].groups[0])
        return state, metrics.pairs() | position(self.stream, rate) | self._told(parts, clock, usage)

    def evaluate(self, state: TrainState, done: int) -> dict:
        if self.evaluation is None or (done % self.config.holdout.every and done != self.total):
            return {}
        clock = Clock()
        with clock("evaluation"):
            found = self.evaluation(self.learner.model(state.trainable))
        return found | clock.pairs()

    def _update(self, state: TrainState, part: ScoredGroups, metrics: Metrics) -> TrainState:
        """One optimiser step; waits for it."""
        arguments = part.rows.batch, part.rows.features, part.signals, self.config.policy_loss
        state, update = self.learner.grpo_step(state, self.learner.frozen, *arguments)
        metrics.add(update)
        ids = [group.item[1].id for group in part.groups]
        check_finite(update, (part.rows.batch, part.signals), ids, self.folder, self.config.max_nonfinite)
        return state

    def _write_groups(
        self, index: int, clock: Clock, metrics: Metrics
    ) -> tuple[list[Written], Callable[[], list[list[Graded]]]]:
        """The groups of a round, cut into updates, and a function that waits for their grades."""
        if self.config.dynamic_sampling != "refill":
            parts, pending = self._draw(index, 0, clock)
            return parts, lambda: self._grades(parts, pending)
        groups: list[Graded] = []
        for attempt in range(self.config.max_refills + 1):
            drawn = self._draw(index, attempt, clock)
            with clock("reward"):
                groups += [group for part in self._grades(*drawn) for group in part]
            if sum(group.teaches for group in groups) >= self.config.prompts:
                break
        equal = sum(not group.teaches for group in groups)
        metrics.add({"refill/groups": len(groups), "refill/frac_reward_zero_std": (equal, len(groups))})
        # Stable: those that teach first, each kind in the order of drawing.
        chosen = self._cut(sorted(groups, key=lambda group: not group.teaches)[: self.config.prompts])
        with clock("vision"):
            return [self._written(part) for part in chosen], lambda: chosen

    def _draw(self, index: int, attempt: int, clock: Clock) -> tuple[list[Written], list[Future]]:
        """Writes `prompts` groups; those of one update are scored while the next are being written."""
        with clock("input"):
            batches = self._cut(next(self.stream))
        seed = self.config.seed + 1_000_003 * index + 7_368_787 * attempt
        parts, pending = [], []
        for items in batches:
            self.stop.check()
            with clock("vision"):
                prompts = self._prepare(items)
            with clock("decode"):
                answers = write(self.sampler, prompts, self.config.rollout.branches, seed)
            parts.append(Written(items, answers, prompts))
            pending.append(self.grader.submit(score_share, self.pool, items, answers, self.config))
        return parts, pending

    def _grades(self, parts: list[Written], pending: list[Future]) -> list[list[Graded]]:
        shares = zip(*together(lambda: [scores.result() for scores in pending]))
        return [grade_groups(scores, part.items, part.answers, self.config) for scores, part in zip(shares, parts)]

    def _written(self, groups: list[Graded]) -> Written:
        items = [group.item for group in groups]
        return Written(items, [group.answers for group in groups], self._prepare(items))

    def _prepare(self, items: list) -> Prompts:
        return prepare(items, self.sampler.model, self.processor, self.config, self.mesh)

    def _cut(self, groups: list) -> list[list]:
        size = self.config.prompts // self.config.updates
        return [groups[start : start + size] for start in range(0, len(groups), size)]

    def _log_probs(self, state: TrainState, rows: Rows) -> dict[str, jax.Array]:
        """What the loss compares with. With one update the policy is the one that wrote."""
        once = self.config.updates * self.config.iterations == 1
        weights = {"old": None if once else state.trainable, "reference": self.reference}
        return {
            name: self.learner.log_probs(trainable, self.learner.frozen, rows.batch, rows.features)
            for name, trainable in weights.items()
            if trainable is not None
        }

    def _told(self, parts: list[Written], clock: Clock, before: Usage) -> dict:
        """Tokens, speed and phases of the round."""
        now, config = self.sampler.usage, self.config
        prompts = [len(prompt.token_ids) for part in parts for prompt in part.prompts.encoded]
        branches = [[len(answer.token_ids) for answer in group] for part in parts for group in part.answers]
        options = {"passes": config.iterations, "adapters": config.lora is not None}
        told = speed(self.counters, self.sampler.model.config.text, prompts, branches, clock, **options)
        told["rollout/useful_slots"] = now.useful - before.useful, now.slots - before.slots
        prefill = now.prefill_seconds - before.prefill_seconds
        clock.add("prefill", prefill)
        clock.add("decode", -prefill)
        return told | clock.pairs()


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
    warn_about_context(mesh, config.data)
    data, reward = config.data.within_ladder(), config.reward
    processor = data.processor(config.model)
    usable, left_out = usable_samples(data, processor, decided_samples(config, force))
    require_graders((sample.problem_type, sample.id) for sample in usable)
    require_graders((name, "reward.functions") for name in reward.functions)
    samples, held_out = hold_out(usable, config.holdout.samples, config.seed)
    check_batch(len(samples), "samples", config.prompts, "prompts")
    warn_about_sets(samples)
    with Run(config, force=force, lines=lines) as run, RewardPool(reward.workers, reward.timeout_s) as pool:
        if run.finished():
            return True
        pool.warm()
        drawn = data.stream(config.prompts, config.seed)
        stream = PromptStream(samples, processor, drawn, skip_log=run.folder / SKIP_LOG, left_out=left_out)
        rounds = config.rounds or config.epochs * len(stream)
        model = load_model(config.model, mesh, config.dtype, param_dtype=config.param_dtype)
        steps = rounds * config.updates * config.iterations
        learner = Learner.create(model, config, steps, temperature=config.rollout.temperature)
        evaluation = Evaluation(held_out, model, processor, pool, config) if held_out else None
        trainer = GRPOTrainer(config, learner, stream, processor, pool, mesh, rounds, run.folder, evaluation)
        return train_run(run, trainer, progress)


def warn_about_rows(config: GRPOConfig, shards: int) -> None:
    """Says so if the rows of an update cannot be split over the devices."""
    rows, branches = config.rows // config.accumulate, config.rollout.branches
    fitting = [n for n in range(1, branches + 1) if branches % n == 0 and rows // config.subgroups * n % shards == 0]
    fix = f"subgroups={fitting[0]}" if fitting else f"prompts={config.updates * config.accumulate * shards}"
    warn_about_shards(rows, shards, fix)
