"""What two prompts share, so that the second need not be computed from its beginning.

Prompts share a prefix if its tokens, their positions and, where visual tokens are among them, all their visuals are the
same: then so are its keys and values.
"""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from videoauto_jax.data.encoding import Encoded

LEAST = 64
"""Tokens that are worth another program and a copy; and so must be half of the prompt."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """What is left of a prompt on the host while its keys and values stay on the device.

    Attributes:
        token_ids, positions: the prompt's.
        visual: visual tokens.
        digest: of the visuals, "" if there are none.
    """

    token_ids: Int[ndarray, "T"]
    positions: Int[ndarray, "3 T"]
    visual: Int[ndarray, "T"]
    digest: str


def trace(prompt: Encoded) -> Trace:
    """The trace of a prompt."""
    vision, digest = prompt.vision, hashlib.blake2b(digest_size=16)
    if vision is None:
        return Trace(prompt.token_ids, prompt.positions, prompt.vision_index, "")
    for array in (vision.patches, vision.rotary_ids, vision.segment_ids):
        digest.update(np.ascontiguousarray(array).data)
    return Trace(prompt.token_ids, prompt.positions, prompt.vision_index, digest.hexdigest())


def shared_length(new: Trace, old: Trace) -> int:
    """Tokens at the beginning of `new` that `old` has computed already; 0 if they are not worth it.

    At least one token of `new` is left: what it predicts is what the first answer begins with.
    """
    most = min(len(new.token_ids) - 1, len(old.token_ids))
    least = max(LEAST, -(-len(new.token_ids) // 2))
    if most < least or new.token_ids[least - 1] != old.token_ids[least - 1]:  # cheap, and tells most apart
        return 0
    same = (new.token_ids[:most] == old.token_ids[:most]) & (new.visual[:most] == old.visual[:most])
    same &= (new.positions[:, :most] == old.positions[:, :most]).all(axis=0)
    if new.digest != old.digest:
        same &= new.visual[:most] < 0
    length = most if same.all() else int(same.argmin())
    return length if length >= least else 0
