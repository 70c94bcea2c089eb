"""Whether a completion keeps to the form it was asked for: 1 or 0."""

from videoauto_jax.protocol.grammar import CLOSE, OPEN, Profile, check_profile, find_boxes, is_well_formed


def format_answer_twice(completion: str | None, profile: Profile = "strict") -> float:
    """Box, thought, box and nothing else."""
    return float(is_well_formed(completion or "", profile))


def format_boxed(completion: str | None, profile: Profile = "strict") -> float:
    """A thought at the very start and a box somewhere after it (the `cot` form)."""
    text, strict = completion or "", check_profile(profile) == "strict"
    if not text.startswith(OPEN):
        return 0.0
    thought, closed, tail = text.removeprefix(OPEN).partition(CLOSE)
    return float(bool(closed and find_boxes(tail, profile)) and not (strict and not thought.strip()))


def format_direct_boxed(completion: str | None, profile: Profile = "strict") -> float:
    """A box at the start; white space may stand before it, anything after it (the `direct` form)."""
    text = (completion or "").lstrip()
    boxes = find_boxes(text, profile)
    return float(bool(boxes) and boxes[0].start == 0)
