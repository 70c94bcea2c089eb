"""Three-axis (time, height, width) rotary positions of a prompt, computed on the host.

Text advances all three axes together; a visual spreads its merged patches over them and the text behind it continues
after the largest position used (Qwen2-VL paper, section 2.1). The two conventions differ for videos of Qwen2.5-VL only:

- ``upstream`` (transformers 4.57, with which the released checkpoints were trained and scored): the seconds between
  temporal patches are truncated to an integer before they are multiplied with `tokens_per_second`.
- ``hf`` (transformers 5): the product is truncated instead, and the text behind a visual continues after its height and
  width only.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from videoauto_jax.errors import DataError

Family = Literal["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"]
Convention = Literal["upstream", "hf"]
Grid = Sequence[int]


def mrope_positions(
    token_ids: Int[ndarray, "T"],
    grids: Sequence[Grid],
    *,
    family: Family = "qwen3_vl",
    convention: Convention = "upstream",
    second_per_grid: Sequence[float] | None = None,
    image_token_id: int = 151655,
    video_token_id: int = 151656,
    merge_size: int = 2,
    tokens_per_second: int = 2,
) -> Int[ndarray, "3 T"]:
    """Positions of one unpadded sequence.

    Args:
        token_ids: tokens with every placeholder expanded.
        grids: patches along (time, height, width) of every image and video, in the order in which they appear.
        family: Qwen3-VL makes each temporal patch of a video a block of its own (timestamps stand between them).
        second_per_grid: seconds between temporal patches, one per video; 1.0 when absent. Read for Qwen2.5-VL only.
        tokens_per_second: positions per second (Qwen2.5-VL).

    Returns:
        int32 positions; the token behind the last one takes `next_position`.

    Raises:
        DataError: the placeholders of the tokens are not those of the grids, or there is no such family or convention.
    """
    for option, choices in ((family, Family), (convention, Convention)):
        if option not in get_args(choices):
            raise DataError(f"positions of {option!r} are not known", fix=f"Use one of {', '.join(get_args(choices))}")
    token_ids = np.asarray(token_ids)
    slots = np.flatnonzero((token_ids == image_token_id) | (token_ids == video_token_id))
    is_video = token_ids[slots] == video_token_id
    area = merge_size**2
    out = np.empty((3, len(token_ids)), np.int32)
    cursor = used = position = 0
    for times, height, width in _blocks(is_video, grids, family, convention, second_per_grid, area, tokens_per_second):
        size = len(times) * height * width // area
        start = _claim(slots, used, size)
        out[:, cursor:start] = position + np.arange(start - cursor)
        position += start - cursor
        block = _spread(times, height // merge_size, width // merge_size)
        out[:, start : start + size] = position + block
        # Stock transformers 5 forgets how far a video reached in time.
        position += int((block[1:] if convention == "hf" else block).max()) + 1
        cursor, used = start + size, used + size
    if used != len(slots):
        raise DataError(f"{len(slots) - used} visual tokens belong to no visual", fix="Pass the grid of every visual")
    out[:, cursor:] = position + np.arange(len(token_ids) - cursor)
    return out


def next_position(positions: Int[ndarray, "3 T"], convention: Convention = "upstream") -> int:
    """The position, equal on all axes, of the token that follows: as `mrope_positions` would go on.

    Behind text it is one beyond the last position, which in ``hf`` may be less than a video before that text reached.
    """
    last = positions[1 if convention == "hf" else 0 :, -1:]
    return int(last.max()) + 1 if last.size else 0


def mrope_batch(
    token_ids: Int[ndarray, "B T"],
    mask: Int[ndarray, "B T"],
    image_grids: Sequence[Grid],
    video_grids: Sequence[Grid],
    *,
    convention: Convention = "upstream",
    second_per_grid: Sequence[float] | None = None,
    image_token_id: int = 151655,
    video_token_id: int = 151656,
    merge_size: int = 2,
    **options,
) -> tuple[Int[ndarray, "3 B T"], Int[ndarray, "B"]]:
    """Positions and rope deltas of a padded batch, as `get_rope_index` of transformers returns them.

    Args:
        mask: 1 on tokens, 0 on padding (left or right).
        image_grids, video_grids: grids of the whole batch by kind, in order of appearance.
        second_per_grid: one per video of the batch.
        options: as `mrope_positions`.

    Returns:
        Positions (padding holds 1 in the ``upstream`` convention, 0 in ``hf``), and for each row one beyond the largest
        position, less the padded length (``upstream``) or the row's own (``hf``).
    """
    positions = np.full((3, *token_ids.shape), 1 if convention == "upstream" else 0, np.int32)
    deltas = np.empty(len(token_ids), np.int32)
    images, videos = iter(image_grids), zip(video_grids, second_per_grid or [1.0] * len(video_grids))
    ids = {"image_token_id": image_token_id, "video_token_id": video_token_id}
    for row, (tokens, keep) in enumerate(zip(token_ids, np.asarray(mask, bool))):
        grids, seconds = _take(tokens[keep], images, videos, image_token_id, video_token_id, merge_size**2)
        found = mrope_positions(
            tokens[keep], grids, convention=convention, second_per_grid=seconds, merge_size=merge_size, **ids, **options
        )
        positions[:, row, keep] = found
        deltas[row] = found.max(initial=-1) + 1 - (len(tokens) if convention == "upstream" else keep.sum())
    return positions, deltas


def _blocks(is_video, grids, family, convention, seconds, area, tokens_per_second) -> Iterator[tuple]:
    """(time offsets, height, width) of every run of visual tokens."""
    seconds = iter(seconds) if seconds is not None else itertools.repeat(1.0)
    used = 0
    for grid in grids:
        time, height, width = (int(n) for n in grid)
        moving = used < len(is_video) and is_video[used]
        used += time * height * width // area
        if family != "qwen2_5_vl":
            yield from itertools.repeat((np.zeros(1, int), height, width), time)
            continue
        interval = next(seconds) if moving else 0.0
        step = int(interval) if convention == "upstream" else np.float32(interval)
        yield (np.arange(time, dtype=np.float32) * (step * tokens_per_second)).astype(int), height, width


def _claim(slots: ndarray, used: int, size: int) -> int:
    """Where the next `size` visual tokens begin; they must be consecutive."""
    if size == 0 or used + size > len(slots):
        raise DataError(f"a visual needs {size} tokens, {len(slots) - used} are left", fix="Expand the placeholder")
    start = int(slots[used])
    if slots[used + size - 1] != start + size - 1:
        raise DataError(f"the {size} tokens of a visual are interrupted", fix="Expand the placeholder")
    return start


def _spread(times: ndarray, height: int, width: int) -> Int[ndarray, "3 n"]:
    time, row, column = np.meshgrid(times, np.arange(height), np.arange(width), indexing="ij")
    return np.stack([time, row, column]).reshape(3, -1)


def _take(tokens, images, videos, image_id, video_id, area) -> tuple[list[Grid], list[float]]:
    """The grids (and seconds of the videos) of one row, in the order of its tokens."""
    kinds = tokens[(tokens == image_id) | (tokens == video_id)]
    grids, seconds, used = [], [], 0
    while used < len(kinds):
        try:
            grid, second = next(videos) if kinds[used] == video_id else (next(images), None)
        except StopIteration:
            raise DataError("the batch has more visuals than grids", fix="Pass the grid of every visual") from None
        grids.append(grid)
        seconds += [] if second is None else [second]
        used += math.prod(int(n) for n in grid) // area
    return grids, seconds
