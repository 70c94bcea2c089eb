"""Prompts of different lengths to one batch whose shapes come from a short ladder."""

import math
from collections.abc import Sequence

import numpy as np

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.patches import concatenate_vision, pad_vision
from videoauto_jax.errors import DataError
from videoauto_jax.models.inputs import ModelInputs

SMALLEST_BUCKET = 64


def bucket(size: int, ladder: Sequence[int] | None = None) -> int:
    """The first rung that holds `size`.

    Without a ladder the rungs are 64, 96, 128, 192, 256, 384, …: powers of two and the steps half-way between, so that
    at most a third of what is longer than 64 is padding, and few programs are compiled.

    Raises:
        DataError: `size` is beyond the last rung.
    """
    if ladder is None:
        power = max(SMALLEST_BUCKET, 1 << (size - 1).bit_length())
        middle = power // 4 * 3
        return middle if middle >= max(size, SMALLEST_BUCKET) else power
    fits = [rung for rung in ladder if rung >= size]
    if not fits:
        raise DataError(
            f"{size} is beyond the last bucket, {max(ladder)}", fix="Extend the ladder or lower the visual budgets"
        )
    return min(fits)


def collate(
    encoded: Sequence[Encoded],
    *,
    lengths: Sequence[int] | None = None,
    patches: Sequence[int] | None = None,
    pad_token_id: int = 0,
) -> ModelInputs:
    """One right-padded batch of prompts, one row each.

    Args:
        lengths: ladder of row lengths T; `bucket`'s own without one. A ladder of one rung fixes the shape.
        patches: the same for the packed patches Q of the whole batch; rounded up to whole tokens.
        pad_token_id: fills padded tokens.

    Raises:
        DataError: no prompt is given, or one is beyond the ladder.
    """
    if not encoded:
        raise DataError("a batch needs at least one prompt")
    width = bucket(max(len(prompt.token_ids) for prompt in encoded), lengths)
    shape = (len(encoded), width)
    token_ids = np.full(shape, pad_token_id, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    vision_index = np.full(shape, -1, np.int32)
    positions = np.zeros((3, *shape), np.int32)
    rows = 0
    for row, prompt in enumerate(encoded):
        length = len(prompt.token_ids)
        token_ids[row, :length] = prompt.token_ids
        segment_ids[row, :length] = 1
        positions[:, row, :length] = prompt.positions
        vision_index[row, :length] = np.where(prompt.vision_index >= 0, prompt.vision_index + rows, -1)
        rows += int(prompt.vision_index.max(initial=-1)) + 1
    vision = concatenate_vision([prompt.vision for prompt in encoded if prompt.vision is not None])
    if vision is not None:
        patch_count = len(vision.segment_ids)
        whole = patch_count // rows  # patches that become one token: no rung may cut them
        vision = pad_vision(vision, math.ceil(bucket(patch_count, patches) / whole) * whole)
    return ModelInputs(token_ids, positions, segment_ids, vision_index, vision)
