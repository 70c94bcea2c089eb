"""From prompts to groups: features, branches, rewards, advantages, group rows."""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.distributed import join, share
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.rewards import RewardPool, Rewards, total
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.sampler import Sampler
from videoauto_jax.sharding import place_inputs, place_rows
from videoauto_jax.train.groups import GroupBatch, pack_branches_like, pack_groups
from videoauto_jax.train.grpo import group_advantages, zero_variance_groups
from videoauto_jax.train.recipe import GRPOConfig, RewardConfig
from videoauto_jax.train.step import GroupSignals, encode_vision

Item = tuple[int, Sample, Encoded]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of one optimiser step, padded, and their features.

    Attributes:
        samples, encoded: one per prompt.
        host: the batch on the host.
        placed: the same on the mesh.
        features: the frozen tower's features, computed once for rollout and every later pass; None without visuals.
    """

    samples: list[Sample]
    encoded: list[Encoded]
    host: ModelInputs
    placed: ModelInputs
    features: VisionFeatures | None


@dataclasses.dataclass(frozen=True)
class Written:
    """The groups of one optimiser step as they were written; nothing is known yet of how good they are.

    Attributes:
        items: index, sample and encoded prompt of each.
        answers: their branches.
        prompts: the prompts, padded.
    """

    items: list[Item]
    answers: list[list[Answer]]
    prompts: Prompts


class Scores(NamedTuple):
    """What one branch earned: the rewards of its form, and the grades of `reward.functions` in their order."""

    rewards: Rewards
    own: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Graded:
    """The branches of one prompt.

    Attributes:
        item: index, sample and encoded prompt.
        answers: `G` branches.
        rewards: of each branch.
        totals: weighted rewards, the over-long penalty included.
        own: by the name in `reward.functions`, the grades of all branches.
    """

    item: Item
    answers: list[Answer]
    rewards: list[Rewards]
    totals: Float[np.ndarray, "G"]
    own: dict[str, Float[np.ndarray, "G"]] = dataclasses.field(default_factory=dict)

    @property
    def sound(self) -> Bool[np.ndarray, "G"]:
        """Which branches have been written, to whatever end: not those that ended in logits that are not numbers."""
        return np.array([answer.finish_reason not in ("nan", "refused") for answer in self.answers])

    @property
    def teaches(self) -> bool:
        """Whether two branches have different rewards."""
        return not bool(zero_variance_groups(self.totals, len(self.totals), sound=self.sound)[0])


@dataclasses.dataclass(frozen=True)
class Rows:
    """Group rows of one optimiser step; `inputs.vision` is left out, `features` replace it.

    Attributes:
        host: the rows on the host.
        batch: the same on the mesh.
        features: the frozen tower's features.
    """

    host: GroupBatch
    batch: GroupBatch
    features: VisionFeatures | None


@dataclasses.dataclass(frozen=True)
class ScoredGroups:
    """The groups of one optimiser step.

    Attributes:
        groups: the branches of every prompt.
        rows: what the model computes.
        signals: what the loss knows about the branches, on the mesh.
    """

    groups: list[Graded]
    rows: Rows
    signals: GroupSignals


def prepare(items: Sequence[Item], model, processor: Processor, config: GRPOConfig, mesh) -> Prompts:
    """Pads the prompts of one optimiser step and runs the frozen vision tower."""
    samples, encoded = [sample for _, sample, _ in items], [prompt for _, _, prompt in items]
    host = processor.collate(encoded, lengths=config.data.prompt_lengths, patches=config.data.patch_counts)
    placed = place_inputs(host, mesh)
    features = None if placed.vision is None else encode_vision(model, placed.vision)
    placed, features = jax.block_until_ready((placed, features))  # so that each phase is timed for itself
    return Prompts(samples, encoded, host, placed, features)


def write(sampler: Sampler, prompts: Prompts, branches: int, seed: int) -> list[list[Answer]]:
    """The branches of prepared prompts."""
    inputs, features = prompts.placed, prompts.features
    return sampler.generate(prompts.encoded, branches, inputs=inputs, features=features, seed=seed)


def score_share(
    pool: RewardPool, items: Sequence[Item], answers: Sequence[list[Answer]], config: GRPOConfig
) -> list[Scores]:
    """Scores this process's share of the branches. Uses no device: it may run while the device is busy.

    What a grader says may depend on the machine (there are time limits), so no branch is scored twice.
    """
    reward = config.reward
    truths = [(sample.answer, sample.problem_type) for _, sample, _ in items]
    triples = share([(answer.text, *truth) for truth, group in zip(truths, answers) for answer in group])
    rewards = pool.score_many(triples, profile=reward.profile, form=reward.form)
    if not reward.functions:
        return [Scores(one) for one in rewards]
    whole = [(text, truth, name) for text, truth, _ in triples for name in reward.functions]
    grades = iter(pool.grade_many(whole, profile=reward.profile))
    return [Scores(one, tuple(itertools.islice(grades, len(reward.functions)))) for one in rewards]


def grade_groups(
    shares: Sequence[list[Scores]], items: Sequence[Item], answers: Sequence[list[Answer]], config: GRPOConfig
) -> list[Graded]:
    """The branches with their rewards, of which every process has scored its share."""
    scored, graded, names = iter(join(shares)), [], config.reward.functions
    for item, group in zip(items, answers):
        scores = list(itertools.islice(scored, len(group)))
        penalties = [overlong_penalty(len(a.token_ids), config.rollout.max_new_tokens, config.reward) for a in group]
        totals = [_weighted(one, config.reward) - penalty for one, penalty in zip(scores, penalties)]
        own = {name: np.array([one.own[n] for one in scores]) for n, name in enumerate(names)}
        graded.append(Graded(item, group, [one.rewards for one in scores], np.array(totals, np.float32), own))
    return graded


def _weighted(scores: Scores, config: RewardConfig) -> float:
    return total(scores.rewards, config.weights) + sum(map(operator.mul, config.functions.values(), scores.own))


def overlong_penalty(tokens: int, limit: int, config: RewardConfig) -> float:
    """What a branch of so many tokens loses (DAPO, arXiv 2503.14476, eq. 13): 0 before the buffer, all at its end."""
    if not config.overlong_buffer:
        return 0.0
    over = tokens - (limit - config.overlong_buffer)
    return config.overlong_penalty * min(max(over / config.overlong_buffer, 0.0), 1.0)


def counted_branches(group: Graded, config: GRPOConfig) -> Bool[np.ndarray, "G"]:
    """Which branches take part in the loss."""
    if config.dynamic_sampling != "off" and not group.teaches:
        return np.zeros(len(group.answers), bool)
    cut = [config.mask_truncated and answer.finish_reason == "length" for answer in group.answers]
    return group.sound & ~np.array(cut)


def pack(part: Written, config: GRPOConfig, mesh) -> Rows:
    """The group rows of one optimiser step, on the host and on the mesh."""
    host = pack_groups(
        dataclasses.replace(part.prompts.host, vision=None),
        [prompt.next_position for prompt in part.prompts.encoded],
        [[answer.token_ids for answer in group] for group in part.answers],
        bound=config.rollout.max_new_tokens,
        count=config.rollout.branches,
        lengths=config.data.branch_lengths,
        subgroups=config.subgroups,
    )
    return Rows(host, place_groups(host, mesh), part.prompts.features)


def score(
    rows: Rows, groups: list[Graded], log_probs: dict[str, Float[Array, "B G R"]], config: GRPOConfig, mesh
) -> ScoredGroups:
    """Rows with what the loss has to know about them.

    Args:
        rows: of `groups`.
        groups: graded.
        log_probs: `old` and `reference`, as far as the loss needs them.
        config: the recipe.
        mesh: where the signals go.
    """
    totals = np.concatenate([group.totals for group in groups])
    sound = np.concatenate([group.sound for group in groups])
    options = {"kind": config.advantage, "sound": None if sound.all() else sound}
    advantages = np.asarray(group_advantages(totals, config.rollout.branches, **options))
    counted = np.concatenate([counted_branches(group, config) for group in groups])
    sampling = pack_branches_like(rows.host, [a.sampling_logprobs for group in groups for a in group.answers])
    shape = rows.host.mask.shape[:2]
    arrays = place_rows((advantages.reshape(shape), counted.reshape(shape), sampling), mesh)
    return ScoredGroups(groups, rows, GroupSignals(*arrays, **log_probs))


def place_groups(batch: GroupBatch, mesh) -> GroupBatch:
    """Group rows onto the mesh."""
    rows = place_rows((batch.source, batch.targets, batch.place, batch.mask), mesh)
    return GroupBatch(place_inputs(batch.inputs, mesh), *rows, batch.prompt_length, batch.branch_bound)
