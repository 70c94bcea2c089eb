"""Answer-twice responses for the warm-up: right in form, hasty in a chosen part of the reasoning."""

import dataclasses

import numpy as np

from videoauto_jax.cli.quickstart.questions import GUESS, Item
from videoauto_jax.protocol import FALLBACK_ANSWER


@dataclasses.dataclass(frozen=True)
class DemonstrationMix:
    """Probabilities that shape the warm-up. "Perception" includes grounding.

    Attributes:
        perception_fallback: perception: box 1 holds the fallback sentence.
        perception_first_wrong: perception: box 1 holds a wrong answer where it is not the fallback, else the right one.
        reasoning_fallback: reasoning: box 1 holds the fallback sentence.
        reasoning_first_right: reasoning: box 1 is right where it is not the fallback, else a wrong guess.
        careful: reasoning: the thought takes every step and ends in the right answer, else it is hurried.
        hurried_right: reasoning: the guess of a hurried thought is right.
    """

    perception_fallback: float = 0.01
    perception_first_wrong: float = 0.0
    reasoning_fallback: float = 0.3
    reasoning_first_right: float = 0.25
    careful: float = 0.3
    hurried_right: float = 0.25


def demonstration(item: Item, rng: np.random.Generator, mix: DemonstrationMix) -> str:
    """A full response `\\boxed{a1}<think>thought</think>\\boxed{a2}` drawn from the mix."""
    if item.kind != "reasoning":
        return response(_perceived(item, rng, mix), item.careful, item.answer)
    first = FALLBACK_ANSWER if rng.random() < mix.reasoning_fallback else _guess(item, rng, mix.reasoning_first_right)
    if rng.random() < mix.careful:
        return response(first, item.careful, item.answer)
    guess = _guess(item, rng, mix.hurried_right)
    return response(first, item.hurried.replace(GUESS, guess), guess)


def response(first: str, thought: str, final: str) -> str:
    return f"\\boxed{{{first}}}<think>{thought}</think>\\boxed{{{final}}}"


def _perceived(item: Item, rng: np.random.Generator, mix: DemonstrationMix) -> str:
    if rng.random() < mix.perception_fallback:
        return FALLBACK_ANSWER
    return _guess(item, rng, 1 - mix.perception_first_wrong)


def _guess(item: Item, rng: np.random.Generator, right: float) -> str:
    return item.answer if rng.random() < right else str(rng.choice(item.wrong))
