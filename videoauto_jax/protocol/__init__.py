"""The answer-twice protocol: its prompts, its grammar, and the confidence of a first answer."""

import importlib

from videoauto_jax.protocol.grammar import (
    PROFILES,
    Box,
    Profile,
    Response,
    begun_response,
    check_profile,
    find_boxes,
    first_answer,
    is_fallback,
    is_well_formed,
    last_box_or_text,
    parse_response,
    second_answer,
)
from videoauto_jax.protocol.prompts import (
    BOXED_SUFFIX,
    FALLBACK_ANSWER,
    FALLBACK_PREFIX,
    grounded_qa_prompt,
    grounding_prompt,
    system_prompt,
)

# These import jax; whoever only parses text (a reward worker) must not pay for it.
_LAZY = {"first_answer_confidence": "confidence"}

__all__ = [
    "BOXED_SUFFIX",
    "FALLBACK_ANSWER",
    "FALLBACK_PREFIX",
    "PROFILES",
    "Box",
    "Profile",
    "Response",
    "begun_response",
    "check_profile",
    "find_boxes",
    "first_answer",
    "first_answer_confidence",
    "grounded_qa_prompt",
    "grounding_prompt",
    "is_fallback",
    "is_well_formed",
    "last_box_or_text",
    "parse_response",
    "second_answer",
    "system_prompt",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
