"""Multiple choice: finding the letter of an option in a text, and benchmarks that consist of it."""

import re
import string
from collections.abc import Sequence

from videoauto_jax.eval.benchmarks.base import Benchmark, Metrics, Row, Score, counted, percentage
from videoauto_jax.rewards.choice import normalise, option_letter

_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
MORE_PREFIXES = (*_PREFIXES, "The best option is", "The correct option is", "Best answer:", "Best option:")
FUSED_PREFIXES = (*_PREFIXES, "The best option isThe correct option is", "Best answer:Best option:")
"""As published for all but LongVideoBench: two commas are missing."""
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|mbox)\s*\{([^{}]*)\}|\$([^$]*)\$")


def first_capital(text: str, letters: str, prefixes: Sequence[str] = FUSED_PREFIXES) -> str:
    """The first capital among `letters` anywhere in a text, as published: the D of `Dog` and the A of `Answer: B` too.

    `prefixes` are taken out first. "" without such a capital.
    """
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    found = re.search(f"[{letters}]", text)
    return found[0] if found else ""


def strict_letter(text: str, letters: str, options: Sequence[str] = ()) -> str:
    """The letter a text names: alone, bracketed, with its option's text behind it, as the only letter that stands by
    itself, or by the text of an option. "" where it names none, or more than one.
    """
    text = _WRAPPED.sub(lambda match: match[1] or match[2] or "", text).strip()
    for prefix in MORE_PREFIXES:
        text = re.sub(rf"^{re.escape(prefix.rstrip(':'))}\s*:?\s*", "", text, flags=re.IGNORECASE)
    text = re.sub(r"^answer\s*:\s*", "", text, flags=re.IGNORECASE).strip()
    letter = (option_letter(text) or normalise(text.removesuffix("."))).upper()
    if len(letter) == 1:
        return letter if letter in letters else ""
    said = normalise(text).rstrip(".")
    same = [own for own, option in zip(letters, options) if normalise(option).rstrip(".") == said]
    alone = set(re.findall(rf"(?<![\w'])[{letters}](?![\w'])", text))
    alone -= {word for word in "AI" if re.search(rf"\b{word} (?!or\b|and\b)[a-z]", text)}  # an article, a pronoun
    found = same or sorted(alone)
    return found[0] if len(found) == 1 else ""


def letter_of(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that is the answer; "" where none is."""
    return next((letter for letter, option in zip(string.ascii_uppercase, options) if option == answer), "")


class Choice(Benchmark):
    """Multiple choice with one right letter. As published, the first capital in the answer counts."""

    letters = "ABCDE"

    def options(self, row: Row) -> Sequence[str]:
        """Texts of the options, without letters."""
        return ()

    def extract(self, text: str) -> str:
        return self.read(self.boxed_text(text))

    def read(self, said: str, options: Sequence[str] = ()) -> str:
        """The letter in what was said."""
        if self.profile == "strict":
            return strict_letter(said, self.letters, options)
        return first_capital(said, self.letters)

    def expected(self, row: Row) -> str:
        """What `read` finds in a right answer: the truth, as published with the blanks that may stand around it."""
        return self.truth(row).strip() if self.profile == "strict" else self.truth(row)

    def score(self, record: Row, text: str) -> Score:
        found = self.read(self.boxed_text(text), self.options(record))
        return Score(float(found == self.expected(record)), prediction=found, groups=self.groups(record))

    def aggregate(self, scores: Sequence[float]) -> Metrics:
        return {self.headline: percentage(counted(scores))}
