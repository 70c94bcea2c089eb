"""What prompts and answers cost in seconds, from what answers took."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 8
"""Answers finish in bursts; this many in a row are timed as one."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds per token of a run as a whole, all its slots together.

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

    The first answer is left out: it pays for loading and compiling. None where too little is known, so fewer than three
    windows.

    Args:
        timings: lines of timings.jsonl, in their order.
    """
    lines = list(timings)[1:]
    windows = [lines[start : start + WINDOW] for start in range(0, len(lines) - WINDOW + 1, WINDOW)]
    if len(windows) < 3:
        return None
    from scipy.optimize import nnls

    sums = np.array([[sum(line[key] for line in window) for key in ("prompt_tokens", "tokens")] for window in windows])
    seconds = np.array([sum(line["seconds"] for line in window) for window in windows])
    (prompt, answer), _ = nnls(sums.astype(float), seconds)
    return Cost(float(prompt), float(answer))
