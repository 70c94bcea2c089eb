"""An answer and the interval that supports it, `answer <> [start, end]` (`gqa`)."""

from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards.choice import grade_choice
from videoauto_jax.rewards.interval import grade_interval

SEPARATOR = "<>"


def grade_grounded(prediction: str, answer: dict, profile: Profile) -> float:
    """Answer (0 or 1) plus IoU, in [0, 2]. Without `<>` both rules see the whole prediction.

    Args:
        prediction: the box's content.
        answer: `{"answer": text, "segment": [start, end] or a list of those}`.
        profile: which rules judge the two parts.

    Raises:
        TypeError, KeyError, ValueError, IndexError: an answer of another shape.
    """
    truth = answer["answer"]
    if truth is None or (profile == "paper" and not isinstance(truth, str)):
        raise TypeError(f"the answer of a grounded question is {truth!r}")
    said, segment = prediction.split(SEPARATOR)[0], prediction.split(SEPARATOR)[-1]
    return grade_choice(said, truth, profile) + grade_interval(segment, answer["segment"], profile)
