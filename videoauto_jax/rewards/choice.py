"""Short answers: option letters, yes and no, free text (`exact_match`)."""

import re
import unicodedata

from videoauto_jax.protocol.grammar import Profile

_YES_NO = dict.fromkeys(("yes", "y", "true", "t", "ok", "okay"), "yes")
_YES_NO |= dict.fromkeys(("no", "n", "false", "f"), "no")

_BRACKETED = r"[(\[{]\s*([a-z])\s*[)\]}]"
_LETTER = re.compile(rf"(?:{_BRACKETED}|([a-z]))\s*[)/:;-]?")
# Strict: a full stop ends a letter too, and the option's text may follow the stop, colon or bracket.
_OPTION = re.compile(rf"(?:{_BRACKETED}\s*[).:]?|([a-z])\s*[).:])(?:\s+(.*))?", re.DOTALL)
# `A. cat, B. dog` hedges. An option starts the text or follows a comma, a slash, "and" or "or".
_ANOTHER = re.compile(r"(?:^|[,;/&]|\b(?:and|or)\b)\s*(?:[(\[{]\s*[a-z]\s*[)\]}]|[a-z][.):](?=\s|$)|[a-z]$)")


def grade_choice(prediction: str, answer: object, profile: Profile) -> float:
    """1 if the normalised texts are equal, else 0.

    `strict` turns numbers and other answers that are not strings into text, and where the answer is a letter it also
    takes `A.`, `(A).` and `A. cat` for that letter, unless a second option is named.
    """
    if profile == "paper":
        return float(normalise(answer) == normalise(prediction))
    if answer is None:
        return 0.0
    answer = str(answer)
    letter = _letter(answer)
    if letter is None:
        return float(normalise(answer) == normalise(prediction))
    return float(letter == (option_letter(prediction) or normalise(prediction)))


def normalise(text: str | None) -> str:
    """A lone letter, bracketed or with one of `) / : ; -` behind it; `yes` or `no`; or the text in lower case.

    Full-width forms are folded (NFKC), white space is collapsed, punctuation of free text is kept.

    Raises:
        TypeError: neither a string nor None.
    """
    if text is None:
        return ""
    text = unicodedata.normalize("NFKC", text).strip().lower()
    if match := _LETTER.fullmatch(text):
        return match[1] or match[2]
    bare = re.sub(r"^\W+|\W+$", "", text)
    return _YES_NO.get(bare) or " ".join(text.split())


def option_letter(text: str) -> str | None:
    """The letter of `A.`, `(A).` or `A. cat` in lower case, else None."""
    match = _OPTION.fullmatch(unicodedata.normalize("NFKC", text).strip().lower())
    if not match or _ANOTHER.search(match[3] or ""):
        return None
    return match[1] or match[2]


def _letter(answer: str) -> str | None:
    """The letter an answer consists of, `A.` and `(A).` included; None if it is anything else."""
    text = normalise(answer.strip().removesuffix("."))
    return text if re.fullmatch("[a-z]", text) else None
