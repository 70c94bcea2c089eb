"""Graders by problem type.

A grader is a function `(prediction, answer, profile) -> float`: the content of a box, the ground truth as the dataset
gives it, and which rules to apply. A user's own is registered under a name, or named as `module:function`.
"""

import dataclasses
import difflib
import functools
import importlib
import logging
import math
from collections.abc import Callable, Iterable

from videoauto_jax.errors import DataError
from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards.choice import grade_choice
from videoauto_jax.rewards.grounded import grade_grounded
from videoauto_jax.rewards.interval import grade_interval
from videoauto_jax.rewards.math import grade_math

Grade = Callable[[str, object, Profile], float]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grader:
    """A named grader.

    Attributes:
        name: the problem type.
        grade: the function.
        isolated: it may hang or crash, so `RewardPool` runs it in a process of its own with a time limit.
        reference: what finds it in another process: a built-in name or `module:function`.
    """

    name: str
    grade: Grade
    isolated: bool
    reference: str


_GRADERS = {
    "exact_match": Grader("exact_match", grade_choice, isolated=False, reference="exact_match"),
    "math": Grader("math", grade_math, isolated=True, reference="math"),
    "iou": Grader("iou", grade_interval, isolated=False, reference="iou"),
    "gqa": Grader("gqa", grade_grounded, isolated=False, reference="gqa"),
}


def register_grader(name: str, grade: Grade, *, isolated: bool = True) -> None:
    """Makes `grade` the grader of the problem type `name`. A later registration replaces an earlier one.

    Raises:
        DataError: `isolated`, and another process could not import the function.
    """
    reference = f"{grade.__module__}:{grade.__qualname__}"
    if isolated and (grade.__module__ == "__main__" or "<" in grade.__qualname__):
        raise DataError(
            f"grader {name!r} cannot be imported by another process",
            where=reference,
            fix="Define it at the top level of a module, or register it with isolated=False.",
        )
    _GRADERS[name] = Grader(name, grade, isolated, reference)


def find_grader(problem_type: str) -> Grader:
    """The grader of a problem type.

    Raises:
        DataError: no grader has this name, or `module:function` cannot be imported.
    """
    if isinstance(problem_type, str) and problem_type in _GRADERS:
        return _GRADERS[problem_type]
    if isinstance(problem_type, str) and ":" in problem_type:
        return _import_grader(problem_type)
    near = difflib.get_close_matches(str(problem_type), _GRADERS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"unknown problem type {problem_type!r}",
        fix=f"{hint}Known types: {', '.join(known_types())}; your own: 'module:function'.",
    )


def require_graders(wanted: Iterable[tuple[str, str]]) -> None:
    """Finds every grader of a run before it begins, rather than when the first answer of its kind is graded.

    Args:
        wanted: problem types or names of graders, each with the place that asks for it.

    Raises:
        DataError: there is no such grader; names the first place that asks for it.
    """
    places: dict[str, str] = {}
    for name, place in wanted:
        places.setdefault(name, place)
    for name, place in places.items():
        try:
            find_grader(name)
        except DataError as error:
            raise DataError(error.what, where=place, fix=error.fix) from error


def known_types() -> list[str]:
    """Names of all registered graders."""
    return sorted(_GRADERS)


def grade(prediction: str, answer: object, problem_type: str, *, profile: Profile = "strict") -> float:
    """Grade of one extracted answer. A grader that fails, as on a malformed ground truth, gives 0 and one warning.

    Raises:
        DataError: unknown problem type.
    """
    grader = find_grader(problem_type)
    try:
        value = float(grader.grade(prediction.strip(), _stripped(answer), profile))
        if not math.isfinite(value):
            raise ValueError(f"the grade is {value}")
    except Exception as error:
        _warn_once(grader.name, f"{type(error).__name__}: {error}")
        return 0.0
    return value


@functools.lru_cache(maxsize=256)
def _warn_once(name: str, message: str) -> None:
    _log.warning("grader %s failed and gave 0: %s", name, message)


def _stripped(answer: object) -> object:
    return answer.strip() if isinstance(answer, str) else answer


@functools.cache
def _import_grader(reference: str) -> Grader:
    module, _, path = reference.partition(":")
    try:
        found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise DataError(f"grader {reference!r} cannot be imported: {error}", fix="Check the path.") from error
    if not callable(found):
        raise DataError(f"grader {reference!r} is not a function", fix="Name a function.")
    return Grader(reference, found, isolated=True, reference=reference)
