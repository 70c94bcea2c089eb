"""One chat prompt, encoded on the host."""

import dataclasses

from jaxtyping import Int
from numpy import ndarray

from videoauto_jax.models.inputs import VisionInputs


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A prompt as the model sees it, unpadded.

    Attributes:
        token_ids: tokens with every visual placeholder already expanded.
        positions: M-RoPE (time, height, width) positions.
        vision_index: row of this prompt's own merged vision embeddings, -1 on text.
        vision: this prompt's visuals packed without padding, or None.
        next_position: the position, equal on all three axes, of the token that follows.
        text: the chat text before placeholder expansion.
    """

    token_ids: Int[ndarray, "T"]
    positions: Int[ndarray, "3 T"]
    vision_index: Int[ndarray, "T"]
    vision: VisionInputs | None
    next_position: int
    text: str
