"""From prompts to scored groups: features, branches, rewards, advantages, group rows."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.protocol.grammar import is_fallback
from videoauto_jax.rewards import RewardPool, Rewards, total
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.sampler import Sampler
from videoauto_jax.sharding import place_inputs, place_rows
from videoauto_jax.train.groups import GroupBatch, pack_groups
from videoauto_jax.train.grpo import group_advantages
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.step import encode_vision

Item = tuple[int, Sample, Encoded]

GATE = 0.97
"""Confidence below which the metric `think_ratio` counts a branch as one that would think (the paper's threshold)."""


@dataclasses.dataclass(frozen=True)
class ScoredGroups:
    """The groups of one optimiser step.

    Attributes:
        samples: one per prompt.
        answers: `G` per prompt.
        rewards: of each branch.
        totals: weighted rewards.
        advantages: relative to the branch's group.
        batch: the group rows, on the mesh; `inputs.vision` is left out, `features` replace it.
        features: the frozen tower's features, computed once for rollout and every later pass.
    """

    samples: list[Sample]
    answers: list[list[Answer]]
    rewards: list[list[Rewards]]
    totals: Float[np.ndarray, "B G"]
    advantages: Float[np.ndarray, "B G"]
    batch: GroupBatch
    features: VisionFeatures | None


def roll_out(
    sampler: Sampler, processor: Processor, pool: RewardPool, items: Sequence[Item], config: GRPOConfig, mesh, seed: int
) -> ScoredGroups:
    """Writes and scores the groups of one optimiser step.

    Args:
        sampler: holds the current weights.
        processor: pads the prompts.
        pool: grades answers.
        items: index, sample and encoded prompt of each group.
        config: the recipe.
        mesh: where arrays go.
        seed: of this round's sampling.
    """
    samples, prompts = [sample for _, sample, _ in items], [encoded for _, _, encoded in items]
    host = processor.collate(prompts, lengths=config.data.prompt_lengths, patches=config.data.patch_counts)
    placed = place_inputs(host, mesh)
    features = None if placed.vision is None else encode_vision(sampler.model, placed.vision)
    answers = sampler.generate(prompts, config.rollout.branches, inputs=placed, features=features, seed=seed)
    rewards = _score(pool, samples, answers, config)
    totals = np.array([[total(reward, config.reward.weights) for reward in group] for group in rewards], np.float32)
    advantages = group_advantages(totals.reshape(-1), totals.shape[1], kind=config.advantage)
    batch = pack_groups(
        dataclasses.replace(host, vision=None),
        [prompt.next_position for prompt in prompts],
        [[answer.token_ids for answer in group] for group in answers],
        bound=config.rollout.max_new_tokens,
        count=config.rollout.branches,
        lengths=config.data.branch_lengths,
    )
    advantages = np.asarray(advantages).reshape(totals.shape)
    return ScoredGroups(samples, answers, rewards, totals, advantages, place_groups(batch, mesh), features)


def place_groups(batch: GroupBatch, mesh) -> GroupBatch:
    """Group rows onto the mesh."""
    rows = place_rows((batch.source, batch.targets, batch.place, batch.mask), mesh)
    return GroupBatch(place_inputs(batch.inputs, mesh), *rows, batch.prompt_length, batch.branch_bound)


def _score(
    pool: RewardPool, samples: list[Sample], answers: list[list[Answer]], config: GRPOConfig
) -> list[list[Rewards]]:
    triples = [
        (answer.text, sample.answer, sample.problem_type) for sample, group in zip(samples, answers) for answer in group
    ]
    scored = iter(pool.score_many(triples, profile=config.reward.profile))
    return [list(itertools.islice(scored, len(group))) for group in answers]


def rollout_metrics(groups: ScoredGroups) -> dict[str, tuple[float, float]]:
    """Metrics of written and scored branches as (sum, count) pairs, named as upstream's (§4.6) where it has them."""
    answers = [answer for group in groups.answers for answer in group]
    rewards = np.array([reward for group in groups.rewards for reward in group], np.float64)
    lengths = [len(answer.token_ids) for answer in answers]
    count = len(answers)
    deviations = groups.totals.std(axis=1)
    pair = lambda values: (float(np.sum(values)), count)  # noqa: E731
    confidences = [answer.confidence for answer in answers if answer.confidence >= 0]
    return {
        "reward": pair(groups.totals),
        "reward_std": (float(deviations.sum()), len(deviations)),
        "frac_reward_zero_std": (float(np.sum(deviations == 0)), len(deviations)),
        "rewards/accuracy_twice_boxed_reward1": pair(rewards[:, 0]),
        "rewards/accuracy_twice_boxed_reward2": pair(rewards[:, 1]),
        "rewards/format_twice_boxed_reward": pair(rewards[:, 2]),
        "completions/mean_length": pair(lengths),
        "completions/min_length": (float(min(lengths)), 1),
        "completions/max_length": (float(max(lengths)), 1),
        "completions/clipped_ratio": pair([answer.finish_reason == "length" for answer in answers]),
        "fallback_ratio": pair([is_fallback(answer.first_answer) for answer in answers]),
        "confidence": (float(sum(confidences)), len(confidences)),
        "think_ratio": pair([answer.confidence < GATE for answer in answers]),
        "nan_branches": (float(sum(answer.finish_reason == "nan" for answer in answers)), 1),
    }
