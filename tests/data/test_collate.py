"""Batches on a short ladder of shapes."""

import dataclasses

import numpy as np
import pytest

from videoauto_jax.data.collate import bucket, collate
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.patches import pack_frames
from videoauto_jax.errors import DataError


def prompt(length, frames=0):
    """A prompt of `length` tokens, of which the first are `frames // 2 * 4` visual ones."""
    vision = pack_frames(np.full((frames, 64, 64, 3), length, np.uint8), 16, 8) if frames else None
    index = np.full(length, -1, np.int32)
    index[: frames // 2 * 4] = np.arange(frames // 2 * 4)
    tokens = np.arange(1, length + 1, dtype=np.int32)
    return Encoded(tokens, np.tile(tokens, (3, 1)), index, vision, length + 1, "")


def test_the_ladder():
    assert [bucket(n) for n in (0, 1, 64, 65, 96, 97, 129, 192, 193, 300)] == [
        64,
        64,
        64,
        96,
        96,
        128,
        192,
        192,
        256,
        384,
    ]
    rungs = {bucket(n) for n in range(1, 128 * 1024)}
    assert len(rungs) == 23
    assert all(64 <= bucket(n) < max(1.5 * n + 1, 65) for n in range(1, 5000))
    assert bucket(5, [4, 16, 8]) == 8
    with pytest.raises(DataError, match="17 is beyond the last bucket, 16"):
        bucket(17, [4, 16, 8])


def test_rows_are_padded_on_the_right_and_point_at_their_own_visuals():
    batch = collate([prompt(70, 4), prompt(5), prompt(20, 2)], pad_token_id=9)
    assert batch.token_ids.shape == (3, 96)
    assert batch.positions.shape == (3, 3, 96)
    assert batch.token_ids.dtype == batch.positions.dtype == batch.segment_ids.dtype == np.int32
    np.testing.assert_array_equal(batch.segment_ids.sum(1), [70, 5, 20])
    np.testing.assert_array_equal(batch.token_ids[1], [1, 2, 3, 4, 5, *[9] * 91])
    np.testing.assert_array_equal(batch.positions[:, 1, :6], np.tile([1, 2, 3, 4, 5, 0], (3, 1)))
    np.testing.assert_array_equal(batch.vision_index[0, :9], [*range(8), -1])
    np.testing.assert_array_equal(batch.vision_index[2, :5], [8, 9, 10, 11, -1])
    assert (batch.vision_index[1] == -1).all()
    assert batch.vision.patches.shape == (64, 1536)
    np.testing.assert_array_equal(batch.vision.patches[[0, 32, 48], 0], [70, 20, 0])
    np.testing.assert_array_equal(np.bincount(batch.vision.segment_ids), [16, 16, 16, 16])
    assert batch.vision.segment_bound == 16


def test_no_rung_cuts_a_token():
    nine = prompt(4)
    frames = pack_frames(np.zeros((2, 96, 96, 3), np.uint8), 16, 8, merge_size=3)
    nine = dataclasses.replace(nine, vision=frames, vision_index=np.arange(4, dtype=np.int32))
    assert len(frames.segment_ids) == 36
    assert collate([nine]).vision.patches.shape[0] == 72 and collate([nine], patches=[50]).vision.patches.shape[0] == 54


def test_fixed_shapes_and_text_only():
    batch = collate([prompt(5)], lengths=[40])
    assert batch.token_ids.shape == (1, 40)
    assert batch.vision is None
    assert collate([prompt(9, 2)], patches=[16, 128]).vision.patches.shape == (16, 1536)
    with pytest.raises(DataError, match="at least one prompt"):
        collate([])
