"""The order in which Qwen2.5-VL's vision tower takes the tokens of a frame: window by window."""

import functools

import numpy as np
from jaxtyping import Int
from numpy import ndarray


@functools.lru_cache(maxsize=256)
def window_order(height: int, width: int, window: int) -> tuple[Int[ndarray, "m"], Int[ndarray, "m"]]:
    """How the merged tokens of one frame are ordered (HF `get_vision_window_index`).

    Args:
        height, width: of the frame, in merged tokens.
        window: tokens along the side of a window; those at the lower and right edge may be smaller. 0 for a tower
            without windows, which takes tokens row by row.

    Returns:
        For each place in the tower's order the row-major number of its token, and its window, counted from 0.
    """
    if not window:
        return np.arange(height * width), np.zeros(height * width, np.int32)
    row, column = np.divmod(np.arange(height * width), width)
    windows = (row // window * -(-width // window) + column // window).astype(np.int32)
    order = np.argsort(windows, kind="stable")
    return order, windows[order]


def token_rows(grid: tuple[int, int, int], window: int, merge_size: int = 2) -> Int[ndarray, "M"]:
    """For each token of a visual, in the order of the prompt, its row among the tower's merged embeddings.

    Args:
        grid: patches along (time, height, width).
        window: as in `window_order`.
    """
    time, height, width = grid
    order, _ = window_order(height // merge_size, width // merge_size, window)
    rows = np.argsort(order)
    return (np.arange(time)[:, None] * len(rows) + rows).reshape(-1).astype(np.int32)
