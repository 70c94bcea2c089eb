"""What written and scored branches say about the policy, as (sum, count) pairs named as upstream's (§4.6) and TRL's."""

from collections.abc import Sequence

import numpy as np

from videoauto_jax.protocol.grammar import is_fallback
from videoauto_jax.rewards import FALLBACK_BONUS, Rewards
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.train.rollout import Graded

GATE = 0.97
"""Confidence below which `think_ratio` counts a branch as one that would think (the paper's threshold)."""

GATES = (0.9, 0.95, 0.98, 0.99)
"""Further thresholds: `think_ratio/0.9` and so on."""

RIGHT = 0.7
"""Grade above which an answer counts as right (the published fallback bonus draws the same line)."""

SCORE = "eval/accuracy_auto"
"""The metric of held-out samples by which the best checkpoint is chosen."""

Pairs = dict[str, tuple[float, float]]


def rollout_metrics(groups: Sequence[Graded]) -> Pairs:
    """Metrics of the groups of an optimiser step."""
    answers = [answer for group in groups for answer in group.answers]
    rewards = [reward for group in groups for reward in group.rewards]
    totals = np.array([group.totals for group in groups])
    zero = [not group.teaches for group in groups]
    return {
        "reward": _pair(totals.reshape(-1)),
        "reward_std": _pair(totals.std(axis=1, ddof=1)),
        "frac_reward_zero_std": _pair(zero),
        "rewards/accuracy_twice_boxed_reward1": _pair([reward.accuracy_1 for reward in rewards]),
        "rewards/accuracy_twice_boxed_reward2": _pair([reward.accuracy_2 for reward in rewards]),
        "rewards/format_twice_boxed_reward": _pair([reward.format for reward in rewards]),
        **_own_rewards(groups),
        **_lengths(answers),
        **confidence_metrics(answers),
        **answer_table(answers, rewards),
    }


def confidence_metrics(answers: Sequence[Answer]) -> Pairs:
    """How sure first answers are, and how many would be thought about at several thresholds."""
    confidences = np.array([answer.confidence for answer in answers])
    return {
        "fallback_ratio": _pair([is_fallback(answer.first_answer) for answer in answers]),
        "confidence": _pair(confidences[confidences >= 0]),
        "think_ratio": _pair(confidences < GATE),
        **{f"think_ratio/{gate:g}": _pair(confidences < gate) for gate in GATES},
    }


def answer_table(answers: Sequence[Answer], rewards: Sequence[Rewards]) -> Pairs:
    """Shares of branches by whether answer 1 and answer 2 are right: `answers/right_wrong` was spoilt by thinking."""
    first = np.array([reward.accuracy_1 > RIGHT for reward in rewards])
    second = np.array([plain_accuracy_2(answer, reward) > RIGHT for answer, reward in zip(answers, rewards)])
    return {
        "answers/right_right": _pair(first & second),
        "answers/right_wrong": _pair(first & ~second),
        "answers/wrong_right": _pair(~first & second),
        "answers/wrong_wrong": _pair(~first & ~second),
    }


def plain_accuracy_2(answer: Answer, reward: Rewards) -> float:
    """Grade of the second answer without the bonus for having thought first."""
    earned = is_fallback(answer.first_answer) and reward.accuracy_2 > RIGHT + FALLBACK_BONUS
    return reward.accuracy_2 - FALLBACK_BONUS * earned


def _own_rewards(groups: Sequence[Graded]) -> Pairs:
    """`rewards/my_module.my_function` for `my_module:my_function`: TensorBoard knows no colon."""
    return {f"rewards/{name.replace(':', '.')}": _pair([group.own[name] for group in groups]) for name in groups[0].own}


def _lengths(answers: Sequence[Answer]) -> Pairs:
    lengths = [len(answer.token_ids) for answer in answers]
    return {
        "completions/mean_length": _pair(lengths),
        "completions/min_length": (float(min(lengths)), 1.0),
        "completions/max_length": (float(max(lengths)), 1.0),
        "completions/clipped_ratio": _pair([answer.finish_reason == "length" for answer in answers]),
        "nan_branches": (float(sum(answer.finish_reason == "nan" for answer in answers)), 1.0),
    }


def _pair(values: object) -> tuple[float, float]:
    array = np.asarray(values, np.float64)
    return float(array.sum()), float(array.size)
