"""Looking at text while it is written: to show it, and to end it at a stop text."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from videoauto_jax.sampling import engine

OnText = Callable[[int, int, str], None]
"""Told the prompt's number, the branch's, and the text that has been added."""
Decode = Callable[[Int[ndarray, "R"]], str]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no character yet."""


class Watch:
    """Sees all branches that run, every few tokens.

    Args:
        decode: tokens to text.
        stop: texts that end a branch.
        on_text: told of new text, or None.

    Attributes:
        every: decoding steps between two looks.
    """

    every = 8

    def __init__(self, decode: Decode, stop: Sequence[str], on_text: OnText | None):
        self._decode, self._stop, self._on_text = decode, stop, on_text
        self._shown: dict[tuple[int, int], int] = {}

    def look(self, position: int, branches: engine.Branches) -> Bool[ndarray, "G"]:
        """Shows what is new of a prompt's branches; which of them hold a stop text."""
        stopped = np.zeros(len(branches.length), bool)
        for g, length in enumerate(branches.length):
            text = self._decode(branches.tokens[g, :length])
            place = find_stop(text, self._stop)
            stopped[g] = place is not None
            if self._on_text is not None:
                running = place is None and branches.finish[g] == engine.RUNNING
                self._show(position, g, self._certain(text) if running else text[:place])
        return stopped

    def _certain(self, text: str) -> str:
        """Text that further tokens cannot change: no half character, and no beginning of a stop text."""
        text = text.rstrip(UNFINISHED)
        begun = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: len(text) - max(begun, default=0)]

    def _show(self, position: int, branch: int, text: str) -> None:
        before = self._shown.get((position, branch), 0)
        if len(text) > before:
            self._shown[position, branch] = len(text)
            self._on_text(position, branch, text[before:])


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text begins, or None."""
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return min(places) if places else None


def cut_at(tokens: Int[ndarray, "R"], stop: Sequence[str], decode: Decode) -> tuple[str, int, bool]:
    """The text before the first stop text, the tokens up to the one that completes it, and whether there is one."""
    text = decode(tokens)
    place = find_stop(text, stop)
    if place is None:
        return text, len(tokens), False
    low, high = 1, len(tokens)  # the fewest tokens whose text holds a stop text
    while low < high:
        middle = (low + high) // 2
        if find_stop(decode(tokens[:middle]), stop) is None:
            low = middle + 1
        else:
            high = middle
    return text[:place], low, True
