"""Looking at text while it is written: to show it, and to end it at a stop text."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from videoauto_jax.sampling.slots import RUNNING, Branches

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
        self._texts: dict[tuple[int, int], Growing] = {}

    def look(self, position: int, branches: Branches) -> Bool[ndarray, "G"]:
        """Shows what is new of a prompt's branches; which of them hold a stop text that they did not hold before."""
        stopped = np.zeros(len(branches.length), bool)
        for g, length in enumerate(branches.length):
            tokens, text = branches.tokens[g, :length], self._texts.setdefault((position, g), Growing())
            if text.ended:
                continue
            whole = text.read(tokens, self._decode)
            stopped[g] = find_stop(whole, self._stop) is not None
            text.ended = bool(stopped[g]) or branches.finish[g] != RUNNING
            if self._on_text is not None:
                certain = cut_at(tokens, self._stop, self._decode)[0] if text.ended else self._certain(whole)
                if new := text.show(certain):
                    self._on_text(position, g, new)
        return stopped

    def _certain(self, text: str) -> str:
        """Text that further tokens cannot change: no half character, and no beginning of a stop text."""
        text = text.rstrip(UNFINISHED)
        begun = [n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: len(text) - max(begun, default=0)]


@dataclasses.dataclass
class Growing:
    """The text of a branch that goes on: no token is decoded again, but for those of an unfinished character.

    Attributes:
        tokens: that many are decoded for good.
        text: theirs.
        shown: characters that have been told.
        ended: nothing will follow.
    """

    tokens: int = 0
    text: str = ""
    shown: int = 0
    ended: bool = False

    def read(self, tokens: Int[ndarray, "R"], decode: Decode) -> str:
        """The text of all tokens, which begin with those of the last call."""
        new = decode(tokens[self.tokens :]) if len(tokens) > self.tokens else ""
        whole = self.text + new
        if not new.endswith(UNFINISHED):
            self.tokens, self.text = len(tokens), whole
        return whole

    def show(self, text: str) -> str:
        """What of a text has not been shown yet."""
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        return new


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text begins, or None."""
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return min(places) if places else None


def cut_at(tokens: Int[ndarray, "R"], stop: Sequence[str], decode: Decode) -> tuple[str, int, bool]:
    """The text before the stop text that is completed first, the tokens up to the one that completes it, and whether
    there is one. What follows that token changes nothing: how much of it there is depends on when the host looked."""
    text = decode(tokens)
    if find_stop(text, stop) is None:
        return text, len(tokens), False
    low, high = 1, len(tokens)  # the fewest tokens whose text holds a stop text
    while low < high:
        middle = (low + high) // 2
        if find_stop(decode(tokens[:middle]), stop) is None:
            low = middle + 1
        else:
            high = middle
    text = decode(tokens[:low])
    return text[: find_stop(text, stop)], low, True
