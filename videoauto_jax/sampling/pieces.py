"""Prompts cut into what goes through the model at once."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from videoauto_jax.data.collate import bucket
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.patches import concatenate_vision, pad_vision
from videoauto_jax.models.inputs import ModelInputs, VisionInputs
from videoauto_jax.models.vision import VisionFeatures

MERGED = 4
"""Patches that make one visual token."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """`width` tokens of each prompt, from `starts` on; whether a prompt's last token is computed with it."""

    starts: Int[ndarray, "r"]
    width: int
    ends: Bool[ndarray, "r"]


def cut(
    shared: Sequence[int], ends: Sequence[int], *, capacity: int, most: int, lengths: Sequence[int] | None
) -> list[Piece]:
    """The pieces that take prompts from `shared` to `ends` tokens.

    A piece that would not fit behind what is done, within `capacity`, computes a little of that anew.

    Args:
        most: tokens of a piece.
        lengths: ladder of the widths below `most`, or None for that of `data.collate.bucket`.
    """
    done, ends, pieces = np.asarray(shared), np.asarray(ends), []
    while (done < ends).any():
        width = min(bucket(int((ends - done).max()), lengths), most, capacity)
        starts = np.minimum(done, capacity - width).astype(np.int32)
        pieces.append(Piece(starts, width, (done < ends) & (starts + width >= ends)))
        done = np.minimum(starts + width, ends)
    return pieces


@dataclasses.dataclass(frozen=True)
class Collated:
    """Prompts that the caller has collated, one row for each slot, and perhaps the frozen tower's features of them."""

    inputs: ModelInputs
    features: VisionFeatures | None = None


class Batch:
    """Prompts whose pieces run together.

    Args:
        prompts: the prompts.
        pieces: the pieces.
        rows: rows of the batch; what is more than there are prompts is padding.
        pad_token_id: fills padding.

    Attributes:
        features: the frozen tower's features, where they are known.
    """

    features: VisionFeatures | None = None

    def __init__(self, prompts: Sequence[Encoded], pieces: Sequence[Piece], rows: int, pad_token_id: int):
        self.prompts, self.pieces, self._rows, self._pad = prompts, pieces, rows, pad_token_id
        firsts = np.min([piece.starts for piece in pieces], axis=0)
        seen = [(prompt.vision_index[first:] >= 0).any() for prompt, first in zip(prompts, firsts)]
        self._visions = [prompt.vision if needed else None for prompt, needed in zip(prompts, seen)]

    def vision(self) -> VisionInputs | None:
        """The visuals of which a piece has tokens, padded; None if there are none."""
        joined = concatenate_vision([vision for vision in self._visions if vision is not None])
        return None if joined is None else pad_vision(joined, bucket(len(joined.segment_ids)))

    def inputs(self, piece: Piece) -> ModelInputs:
        """A piece of every prompt, padded; `vision_index` counts the visuals of `vision()`, which it leaves out."""
        shape, used = (self._rows, piece.width), 0
        inputs = ModelInputs(
            token_ids=np.full(shape, self._pad, np.int32),
            positions=np.zeros((3, *shape), np.int32),
            segment_ids=np.zeros(shape, np.int32),
            vision_index=np.full(shape, -1, np.int32),
            vision=None,
        )
        for row, (prompt, vision, start) in enumerate(zip(self.prompts, self._visions, piece.starts)):
            here = slice(start, start + piece.width)
            count = len(prompt.token_ids[here])
            inputs.token_ids[row, :count] = prompt.token_ids[here]
            inputs.positions[:, row, :count] = prompt.positions[:, here]
            inputs.segment_ids[row, :count] = 1
            index = prompt.vision_index[here]
            inputs.vision_index[row, :count] = np.where(index >= 0, index + used, -1)
            used += 0 if vision is None else len(vision.segment_ids) // MERGED
        return inputs

    def padded(self, values: Sequence[int]) -> Int[ndarray, "B"]:
        """One number for every row."""
        numbers = np.zeros(self._rows, np.int32)
        numbers[: len(values)] = values
        return numbers


class Given(Batch):
    """Prompts that the caller has collated: one piece."""

    def __init__(self, prompts: Sequence[Encoded], collated: Collated):
        rows, width = collated.inputs.token_ids.shape
        whole = Piece(np.zeros(len(prompts), np.int32), width, np.ones(len(prompts), bool))
        super().__init__(prompts, [whole], rows, 0)
        self._inputs, self.features = collated.inputs, collated.features

    def vision(self) -> VisionInputs | None:
        return self._inputs.vision

    def inputs(self, piece: Piece) -> ModelInputs:
        return dataclasses.replace(self._inputs, vision=None)
