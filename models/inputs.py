"""What the model takes: one pytree of host-made arrays in which text, images and videos are the same program."""

import dataclasses

import jax
from jaxtyping import Array, Float, Int, UInt8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionInputs:
    """Packed visuals of a batch; every fact that depends on a grid is already an array.

    Attributes:
        patches: pixel values 0..255; one patch is ordered (channel, 2 frames, row, column). Four consecutive patches
            merge into one embedding; such fours are ordered (t, h/2, w/2), or window by window within each t
            (Qwen2.5-VL).
        rotary_ids: (row, column) of each patch within its frame.
        segment_ids: attention segment of each patch, contiguous from 1; 0 is padding.
        window_ids: attention window of each patch, contiguous from 1, 0 on padding; None without windows (Qwen3-VL).
        position_index: rows of the learned position grid at the four corners around each patch; None without such a
            grid (Qwen2.5-VL).
        position_weight: bilinear weights of those corners, or None.
        segment_bound: static upper bound on the patches of one segment; attention never looks further.
    """

    patches: UInt8[Array, "Q C2pp"]
    rotary_ids: Int[Array, "Q 2"]
    segment_ids: Int[Array, "Q"]
    window_ids: Int[Array, "Q"] | None
    position_index: Int[Array, "4 Q"] | None
    position_weight: Float[Array, "4 Q"] | None
    segment_bound: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """One batch of rows.

    Attributes:
        token_ids: right-padded tokens.
        positions: M-RoPE (time, height, width) positions; 0 on padding.
        segment_ids: 0 is padding, 1 the sequence. In a group row 1 is the shared prompt and 2, 3, … its branches.
        vision_index: row of the merged vision embeddings that fills a slot, -1 where the token's own embedding stays.
        vision: packed visuals, or None if the whole batch has none.
    """

    token_ids: Int[Array, "B T"]
    positions: Int[Array, "3 B T"]
    segment_ids: Int[Array, "B T"]
    vision_index: Int[Array, "B T"]
    vision: VisionInputs | None
