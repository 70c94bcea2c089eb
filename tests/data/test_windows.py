"""Window order against the torch tower's own."""

import numpy as np
import pytest

from videoauto_jax.data.patches import concatenate_vision, pack_frames, pad_vision
from videoauto_jax.data.windows import token_rows, window_order


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("grid", [(1, 2, 2), (3, 8, 8), (2, 10, 6), (1, 18, 26), (4, 2, 14)], ids=str)
def test_windows_are_those_of_the_torch_tower(grid, window):
    torch = pytest.importorskip("torch")
    from transformers import vision_utils

    index, ends = vision_utils.get_vision_window_index(
        torch.tensor([grid]), spatial_merge_size=2, window_size=window * 2 * 14, patch_size=14
    )
    time, height, width = grid
    order, windows = window_order(height // 2, width // 2, window)
    frame = len(order)
    np.testing.assert_array_equal(np.concatenate([order + i * frame for i in range(time)]), index.numpy())
    np.testing.assert_array_equal(np.argsort(index.numpy()), token_rows(grid, window))
    lengths = np.diff(np.unique(ends.numpy()))
    np.testing.assert_array_equal(np.tile(np.bincount(windows) * 4, time), lengths)


def test_packed_windows_are_contiguous_and_follow_on():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 6 * 14, 10 * 14, 3), dtype=np.uint8)
    plain, packed = pack_frames(frames, 14), pack_frames(frames, 14, window=2)
    assert plain.window_ids is None and packed.position_index is None and packed.position_weight is None
    fours = packed.patches.reshape(2 * 15, -1)
    np.testing.assert_array_equal(fours[token_rows((2, 6, 10), 2)], plain.patches.reshape(2 * 15, -1))
    corners = packed.rotary_ids.reshape(-1, 4, 2)[:, 0]
    assert corners[0].tolist() == [0, 0] and corners[1].tolist() == [0, 2] and corners[2].tolist() == [2, 0]
    assert (np.diff(packed.window_ids) >= 0).all() and packed.window_ids[0] == 1 and packed.window_ids[-1] == 12
    both = pad_vision(concatenate_vision([packed, packed]), 256)
    assert both.window_ids[120] == 13 and both.window_ids[239] == 24 and not both.window_ids[240:].any()
    assert both.position_index is None and both.window_ids.dtype == np.int32
