"""The GRPO loop: write groups, score them, update on them."""

import time
from contextlib import contextmanager

from videoauto_jax.data.processor import Processor
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.files import append_jsonl
from videoauto_jax.models.hf import load_model
from videoauto_jax.rewards import RewardPool
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.sharding import make_mesh, place_rows
from videoauto_jax.train.metrics import Metrics
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.rollout import ScoredGroups, roll_out, rollout_metrics
from videoauto_jax.train.run import Progress, Run, train_run
from videoauto_jax.train.step import Learner, TrainState

ROUNDS_PER_SAMPLE = 10
"""Rounds between two rollouts written to samples.jsonl."""


class GRPOTrainer:
    """One generation round per unit: `prompts` groups, then `updates` optimiser steps on them.

    Args:
        config: the recipe.
        learner: the compiled passes.
        stream: prompts.
        processor: tokens to text and back.
        pool: grades answers.
        mesh: where arrays go.
        total: rounds.
        folder: where sample rollouts are written.
    """

    def __init__(self, config: GRPOConfig, learner: Learner, stream: PromptStream, processor: Processor,
                 pool: RewardPool, mesh, total: int, folder):  # fmt: skip
        self.config, self.learner, self.stream, self.processor = config, learner, stream, processor
        self.pool, self.mesh, self.total, self.folder = pool, mesh, total, folder
        self.reference = learner.initial if config.loss.beta else None
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
        metrics, clock = Metrics(), Clock()
        with clock("rollout"):
            groups = self._write_groups(state, index)
        with clock("old"):
            passes = [self._old_and_reference(state, part) for part in groups]
        with clock("update"):
            for part, old in zip(groups, passes):
                state, update = self.learner.grpo_step(
                    state,
                    self.learner.frozen,
                    part.batch,
                    part.features,
                    old,
                    place_rows(part.advantages, self.mesh),
                    self.config.loss,
                )
                metrics.add(update)
        for part in groups:
            metrics.add(rollout_metrics(part))
        if index % ROUNDS_PER_SAMPLE == 0:
            self._write_sample(index, groups[0])
        return state, {**metrics.pairs(), **clock.pairs()}

    def _write_groups(self, state: TrainState, index: int) -> list[ScoredGroups]:
        self.sampler.model = self.learner.model(state.trainable)
        items, size = next(self.stream), self.sampler.config.prompts
        seed = self.config.seed + 1_000_003 * index
        return [
            roll_out(self.sampler, self.processor, self.pool, items[start : start + size], self.config, self.mesh, seed)
            for start in range(0, len(items), size)
        ]

    def _old_and_reference(self, state: TrainState, part: ScoredGroups) -> tuple:
        """Log-probabilities the loss compares with. With one update per round the policy is the one that wrote."""
        weights = (state.trainable if self.config.updates > 1 else None, self.reference)
        frozen = self.learner.frozen
        score = self.learner.log_probs
        return tuple(None if w is None else score(w, frozen, part.batch, part.features) for w in weights)

    def _write_sample(self, index: int, groups: ScoredGroups) -> None:
        sample, branches = groups.samples[0], zip(groups.answers[0], groups.totals[0])
        record = {
            "round": index + 1,
            "id": sample.id,
            "question": sample.messages[-1]["content"],
            "truth": sample.answer,
        }
        written = [{"text": a.text, "confidence": a.confidence, "reward": float(r)} for a, r in branches]
        append_jsonl(self.folder / "samples.jsonl", record | {"branches": written})


class Clock:
    """Seconds spent in named phases."""

    def __init__(self):
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str):
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def pairs(self) -> dict[str, tuple[float, float]]:
        """The phases as metrics."""
        return {f"seconds/{phase}": (seconds, 1.0) for phase, seconds in self._seconds.items()}


def train_grpo(
    config: GRPOConfig, *, force: bool = False, progress: Progress | None = None, lines: bool = True
) -> None:
    """Runs a recipe, or takes it up where it stopped; writes `output/model`.

    The model and the data are looked at before the folder is claimed: a wrong path leaves nothing behind.

    Args:
        config: the recipe.
        force: begin anew in a folder that holds another run.
        progress: told after every step.
        lines: print a line for every step.
    """
    mesh = make_mesh(config.mesh)
    processor = config.data.processor(config.model)
    samples, reward = config.data.samples(), config.reward
    with Run(config, force=force, lines=lines) as run, RewardPool(reward.workers, reward.timeout_s) as pool:
        if run.finished():
            return
        pool.warm()
        drawn = config.data.stream(config.prompts, config.seed)
        stream = PromptStream(samples, processor, drawn, skip_log=run.folder / "skipped.jsonl")
        rounds = config.rounds or config.epochs * len(stream)
        model = load_model(config.model, mesh, config.dtype, param_dtype="float32")
        learner = Learner.create(model, config, rounds * config.updates, temperature=config.rollout.temperature)
        trainer = GRPOTrainer(config, learner, stream, processor, pool, mesh, rounds, run.folder)
        train_run(run, trainer, progress)
