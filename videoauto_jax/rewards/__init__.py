"""Rewards of a completion: accuracy of its two answers, and its format.

Nothing here imports jax; reward workers start in half a second.
"""

from videoauto_jax.rewards.choice import grade_choice, normalise, option_letter
from videoauto_jax.rewards.format import format_answer_twice, format_boxed, format_direct_boxed
from videoauto_jax.rewards.grounded import grade_grounded
from videoauto_jax.rewards.interval import grade_interval, interval_iou, parse_interval
from videoauto_jax.rewards.math import grade_math, parse_math
from videoauto_jax.rewards.pool import RewardPool
from videoauto_jax.rewards.registry import (
    Grader,
    find_grader,
    grade,
    known_types,
    register_grader,
    require_graders,
)
from videoauto_jax.rewards.scoring import (
    DEFAULT_WEIGHTS,
    FALLBACK_BONUS,
    Rewards,
    score,
    single_box_accuracy,
    total,
)

__all__ = [
    "DEFAULT_WEIGHTS",
    "FALLBACK_BONUS",
    "Grader",
    "RewardPool",
    "Rewards",
    "find_grader",
    "format_answer_twice",
    "format_boxed",
    "format_direct_boxed",
    "grade",
    "grade_choice",
    "grade_grounded",
    "grade_interval",
    "grade_math",
    "interval_iou",
    "known_types",
    "normalise",
    "option_letter",
    "parse_interval",
    "parse_math",
    "register_grader",
    "require_graders",
    "score",
    "single_box_accuracy",
    "total",
]
