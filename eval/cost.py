"""What prompts and answers cost in seconds, from what answers took."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 8
"""Answers finish in bursts; this many in a row are timed as one."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds per token of a run as a whole, all its slots and processes together.

    Attributes:
        prompt: per prompt token, decoding of videos that was waited for included.
        answer: per token written.
    """

    prompt: float
    answer: float

    def seconds(self, prompt_tokens: float, tokens: float) -> float:
        """What prompts and answers of so many tokens are expected to take."""
        return self.prompt * prompt_tokens + self.answer * tokens


def fit_cost(timings: Sequence[Mapping]) -> Cost | None:
    """The non-negative least-squares fit of `seconds = prompt tokens x a + tokens x b` over windows of answers.

    What paid for loading and compiling is left out. None where too little is known, so fewer than three windows.

    Args:
        timings: lines of timings.jsonl, in their order.
    """
    lines = [line for line in timings if not line["first"]]
    windows = [lines[start : start + WINDOW] for start in range(0, len(lines) - WINDOW + 1, WINDOW)]
    if len(windows) < 3:
        return None
    from scipy.optimize import nnls

    sums = np.array([[sum(line[key] for line in window) for key in ("prompt_tokens", "tokens")] for window in windows])
    seconds = np.array([sum(line["seconds"] for line in window) for window in windows])
    (prompt, answer), _ = nnls(sums.astype(float), seconds)
    wall = wall_seconds(lines)
    at_once = sum(line["seconds"] for line in lines) / wall if wall else 1.0
    return Cost(float(prompt / at_once), float(answer / at_once))


def wall_seconds(timings: Sequence[Mapping]) -> float:
    """Seconds in which at least one process was answering: those in which several were count once.

    Args:
        timings: lines of timings.jsonl, in any order.
    """
    total, end = 0.0, -np.inf
    for begun, ended in sorted((line["at"] - line["seconds"], line["at"]) for line in timings):
        total += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return total
