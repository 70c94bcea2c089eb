"""From a completion to its rewards: two accuracies and the format, unweighted (paper, section 3.2)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from videoauto_jax.errors import DataError
from videoauto_jax.protocol.grammar import (
    Profile,
    check_profile,
    first_answer,
    is_fallback,
    last_box_or_text,
    second_answer,
)
from videoauto_jax.rewards.format import format_answer_twice, format_boxed, format_direct_boxed
from videoauto_jax.rewards.registry import find_grader, grade

ResponseForm = Literal["answer_twice", "direct", "cot"]
"""What a response should look like: box, thought, box; a box at once; a thought, then a box."""

_SINGLE_FORMS = {"direct": format_direct_boxed, "cot": format_boxed}

DEFAULT_WEIGHTS = (0.9, 1.1, 1.0)

# Thinking first and then being right is worth 0.3 after the default weight of the second answer.
FALLBACK_BONUS = 0.3 / 1.1
_RIGHT = 0.7


class Rewards(NamedTuple):
    """Unweighted rewards of one completion.

    Attributes:
        accuracy_1: grade of the first answer: 0..1, for `gqa` 0..2.
        accuracy_2: grade of the second answer, plus the fallback bonus 0.3/1.1 where it is earned.
        format: 1 if the completion follows the grammar, else 0.
    """

    accuracy_1: float
    accuracy_2: float
    format: float


def score(completion: str | None, answer: object, problem_type: str, *, profile: Profile = "strict") -> Rewards:
    """Rewards of one completion. Runs in this process without a time limit; `RewardPool` has one.

    An unknown problem type is an error under `strict`; under `paper` its accuracies are 0, as upstream's leak of the
    previous sample's reward is not worth keeping. A completion that is None earns nothing.

    Args:
        completion: text of the response, without end-of-sequence tokens.
        answer: ground truth as the dataset gives it.
        problem_type: `exact_match`, `math`, `iou`, `gqa`, a registered name or `module:function`.
        profile: `strict` or `paper`; docs/rewards.md lists the differences.

    Raises:
        DataError: unknown problem type (`strict`, and `module:function` that cannot be imported).
        UsageError: unknown profile.
    """
    answers = answers_to_grade(completion, problem_type, profile)
    grades = [grade(text, answer, problem_type, profile=profile) for text in answers]
    return combine(completion, grades, profile)


def answers_to_grade(
    completion: str | None, problem_type: str, profile: Profile, form: ResponseForm = "answer_twice"
) -> tuple[str, ...]:
    """The answers of a completion (two, or one), or none where there is nothing to grade. Raises as `score`."""
    check_profile(profile)
    try:
        find_grader(problem_type)
    except DataError:
        if profile == "strict" or ":" in str(problem_type):
            raise
        return ()
    if completion is None:
        return ()
    if form in _SINGLE_FORMS:
        return (last_box_or_text(completion, profile),)
    return first_answer(completion, profile), second_answer(completion, profile)


def combine(
    completion: str | None, grades: Sequence[float], profile: Profile, form: ResponseForm = "answer_twice"
) -> Rewards:
    """Rewards from the grades of what `answers_to_grade` returned; a single answer counts as both."""
    if form in _SINGLE_FORMS:
        accuracy = grades[0] if grades else 0.0
        return Rewards(accuracy, accuracy, _SINGLE_FORMS[form](completion, profile))
    first, second = grades or (0.0, 0.0)
    if grades and second > _RIGHT and is_fallback(first_answer(completion, profile)):
        second += FALLBACK_BONUS
    return Rewards(first, second, format_answer_twice(completion, profile))


def single_box_accuracy(
    completion: str | None, answer: object, problem_type: str, *, profile: Profile = "strict"
) -> float:
    """Grade of the last box, or of the whole text if there is none: the accuracy of `direct` and `cot`.

    Raises:
        DataError, UsageError: as `score`.
    """
    if not answers_to_grade(completion, problem_type, profile):
        return 0.0
    return grade(last_box_or_text(completion, profile), answer, problem_type, profile=profile)


def total(rewards: Rewards, weights: Sequence[float] = DEFAULT_WEIGHTS) -> float:
    """Weighted sum of the rewards."""
    return sum(weight * reward for weight, reward in zip(weights, rewards, strict=True))
