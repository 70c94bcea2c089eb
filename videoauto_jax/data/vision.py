"""How many frames, how large, how many tokens: the arithmetic of a visual, with no pixel touched.

These are the rules of qwen-vl-utils 0.0.14, with which the released checkpoints were trained and scored. A *visual* is
the dictionary of a chat message (`{"type": "video", "video": …, "max_pixels": …}`); only its numbers are read here.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from videoauto_jax.errors import DataError, MediaError

FRAME_FACTOR = 2  # frames of one temporal patch
MERGE_SIZE = 2  # patches merged into one token, along each side
MAX_ASPECT_RATIO = 200
IMAGE_TOKENS = (4, 16384)  # fewest and most tokens of an image that states no budget
VIDEO_FRAME_TOKENS = (128, 768)  # the same for one frame of a video
VIDEO_TOTAL_TOKENS = 128_000 * 0.9  # and for all temporal patches of a video
_ENDLESS = 2**52  # more frames than any video has, for infinity is no whole number
DEFAULT_FPS, DEFAULT_MIN_FRAMES, DEFAULT_MAX_FRAMES = 2.0, 4, 768


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """An image as the model will see it.

    Attributes:
        height, width: size in pixels after resizing.
        grid: patches along (time, height, width); time is 1.
        tokens: tokens in the prompt.
    """

    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: int


@dataclasses.dataclass(frozen=True)
class VideoPlan:
    """A video as the model will see it.

    Attributes:
        indices: the frames to read, absolute in the file; an even number of them.
        height, width: size in pixels after resizing.
        grid: patches along (time, height, width); one temporal patch is two frames.
        tokens: visual tokens in the prompt (without timestamps).
        sample_fps: frames per second of the sampled frames.
        max_pixels: the cap on one frame that was in force.
        timestamps: seconds, the middle of each temporal patch, in the time of the whole file.
    """

    indices: tuple[int, ...]
    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: int
    sample_fps: float
    max_pixels: float
    timestamps: tuple[float, ...]

    @property
    def second_per_grid(self) -> float:
        """Seconds between two temporal patches."""
        return FRAME_FACTOR / self.sample_fps


def smart_resize(
    height: int, width: int, factor: int, min_pixels: float | None = None, max_pixels: float | None = None
) -> tuple[int, int]:
    """The nearest (height, width) whose sides are multiples of `factor` and whose area is in the budget.

    Rounding is half to even; a side shrunk by `max_pixels` is rounded down and may reach 0, one grown by `min_pixels`
    is rounded up and may exceed `max_pixels` a little. An absent budget is 4 to 16384 tokens of factor² pixels.

    Raises:
        MediaError: a side is not positive, the aspect ratio exceeds 200, or the budget is empty.
    """
    least, most = (tokens * factor**2 for tokens in IMAGE_TOKENS)
    min_pixels = least if min_pixels is None else min_pixels
    max_pixels = most if max_pixels is None else max_pixels
    _check_size(height, width, min_pixels, max_pixels)
    rounded = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if rounded[0] * rounded[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif rounded[0] * rounded[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return rounded[0], rounded[1]


def frame_count(visual: Mapping, total_frames: int, video_fps: float) -> int:
    """How many frames to sample from `total_frames`: an even number.

    Reads `nframes`, or `fps` (2.0), `min_frames` (4) and `max_frames` (768).

    Raises:
        DataError: both `fps` and `nframes` are given, or one of them is not a positive number.
        MediaError: there are fewer frames than asked for, or fewer than two, or the video's rate is not positive.
    """
    _check_clock(visual, max(total_frames, 1), video_fps)
    if visual.get("nframes") is not None:
        if visual.get("fps") is not None:
            raise DataError("a video states both nframes and fps", where=_name(visual), fix="Keep one of them")
        count = round(min(positive(visual, "nframes", 0), _ENDLESS) / FRAME_FACTOR) * FRAME_FACTOR
    else:
        # 0 is how people say that they want no minimum.
        fewest = 0 if visual.get("min_frames") == 0 else positive(visual, "min_frames", DEFAULT_MIN_FRAMES)
        least = math.ceil(min(fewest, _ENDLESS) / FRAME_FACTOR) * FRAME_FACTOR
        most = positive(visual, "max_frames", min(DEFAULT_MAX_FRAMES, total_frames)) // FRAME_FACTOR * FRAME_FACTOR
        wanted = total_frames / video_fps * positive(visual, "fps", DEFAULT_FPS)
        count = math.floor(min(max(wanted, least), most, total_frames) / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= total_frames:
        raise MediaError(
            f"cannot sample {count} frames from {total_frames}",
            where=_name(visual),
            fix="A video needs at least 2 frames and no more can be sampled than it has: check nframes, max_frames and "
            "the segment, or give a single frame as an image",
        )
    return int(count)


def frame_range(visual: Mapping, total_frames: int, video_fps: float) -> tuple[int, int, int]:
    """First frame, last frame (inclusive) and number of frames of the segment `video_start` … `video_end` (seconds).

    Raises:
        DataError: one of the two is not a number.
        MediaError: the segment holds fewer than two frames of the video, or the video has no frame or no rate.
    """
    _check_clock(visual, total_frames, video_fps)
    start, end = (_seconds(visual, key) for key in ("video_start", "video_end"))
    duration = total_frames / video_fps
    first, last = 0, total_frames - 1
    if start is not None:
        first = math.ceil(min(max(0.0, start), duration) * video_fps)
    if end is not None:
        last = min(math.floor(min(max(0.0, end), duration) * video_fps), total_frames - 1)
    if (start is not None or end is not None) and first >= last:
        raise MediaError(
            f"the segment from {start} s to {end} s is empty (frames {first} to {last} of {duration:.2f} s)",
            where=_name(visual),
            fix="Correct video_start and video_end (seconds)",
        )
    return first, last, last - first + 1


def plan_image(
    height: int, width: int, visual: Mapping | None = None, *, patch_size: int = 16, merge_size: int = MERGE_SIZE
) -> ImagePlan:
    """Size, grid and tokens of an image.

    Args:
        visual: may state `min_pixels` and `max_pixels`, or the exact `resized_height` and `resized_width`.

    Raises:
        MediaError: aspect ratio over 200, or a budget that leaves nothing.
    """
    visual = visual or {}
    factor = patch_size * merge_size
    height, width = _resized(height, width, factor, visual, visual.get("min_pixels"), visual.get("max_pixels"))
    grid = (1, height // patch_size, width // patch_size)
    return ImagePlan(height, width, grid, height * width // factor**2)


def plan_video(
    total_frames: int,
    fps: float,
    height: int,
    width: int,
    visual: Mapping | None = None,
    patch_size: int = 16,
    *,
    merge_size: int = MERGE_SIZE,
) -> VideoPlan:
    """Frames, size, grid, tokens and timestamps of a video file with `total_frames` at `fps`.

    Args:
        visual: may state `fps` or `nframes`, `min_frames`, `max_frames`, `video_start`, `video_end`, `min_pixels`,
            `max_pixels`, `total_pixels`, `resized_height` and `resized_width`.

    Raises:
        DataError, MediaError: as `frame_range`, `frame_count` and `smart_resize`.
    """
    visual = visual or {}
    first, last, available = frame_range(visual, total_frames, fps)
    count = frame_count(visual, available, fps)
    indices = _spread(first, last, count)
    return _plan(indices, fps, count / available * fps, (height, width), visual, patch_size, merge_size)


def plan_frames(
    count: int,
    height: int,
    width: int,
    visual: Mapping | None = None,
    patch_size: int = 16,
    *,
    merge_size: int = MERGE_SIZE,
) -> VideoPlan:
    """The plan of a video given as `count` frames already sampled at `sample_fps` (2.0) from one of `raw_fps`.

    An odd count repeats the last frame.

    Raises:
        DataError, MediaError: no frame, or as `smart_resize`.
    """
    visual = visual or {}
    if count < 1:
        raise MediaError("a video given as a list holds no frame", fix="Give at least one frame")
    sample_fps = positive(visual, "sample_fps", DEFAULT_FPS)
    even = math.ceil(count / FRAME_FACTOR) * FRAME_FACTOR
    raw_fps = positive(visual, "raw_fps", sample_fps)
    return _plan(tuple(range(even)), raw_fps, sample_fps, (height, width), visual, patch_size, merge_size)


def frame_budget(visual: Mapping, frames: int, factor: int) -> tuple[float, float]:
    """Fewest and most pixels of one frame, when `frames` of them share `total_pixels`."""
    least, most = (tokens * factor**2 for tokens in VIDEO_FRAME_TOKENS)
    min_pixels = positive(visual, "min_pixels", least)
    total = positive(visual, "total_pixels", VIDEO_TOTAL_TOKENS * factor**2)
    cap = max(min(most, total / frames * FRAME_FACTOR), int(min_pixels * 1.05))
    return min_pixels, min(positive(visual, "max_pixels", cap), cap)


def _plan(indices, fps, sample_fps, size, visual, patch_size, merge_size) -> VideoPlan:
    factor = patch_size * merge_size
    min_pixels, max_pixels = frame_budget(visual, len(indices), factor)
    height, width = _resized(*size, factor, visual, min_pixels, max_pixels)
    grid = (len(indices) // FRAME_FACTOR, height // patch_size, width // patch_size)
    seconds = [index / fps for index in indices]
    return VideoPlan(
        indices=indices,
        height=height,
        width=width,
        grid=grid,
        tokens=math.prod(grid) // merge_size**2,
        sample_fps=sample_fps,
        max_pixels=max_pixels,
        timestamps=tuple((a + b) / 2 for a, b in zip(seconds[::2], seconds[1::2])),
    )


def _spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` indices from `first` to `last`, the float32 linspace of torch rounded half to even.

    Torch steps from both ends towards the middle and fuses multiply with add, so a point is rounded to float32 once.
    """
    step = float(np.float32(last - first) / np.float32(count - 1))
    i = np.arange(count)
    points = np.where(i < count // 2, first + step * i, last - step * (count - 1 - i))
    return tuple(np.rint(points.astype(np.float32)).astype(int).tolist())


def _resized(height, width, factor, visual, min_pixels, max_pixels) -> tuple[int, int]:
    try:
        if "resized_height" in visual and "resized_width" in visual:
            out = smart_resize(visual["resized_height"], visual["resized_width"], factor)
        else:
            out = smart_resize(height, width, factor, min_pixels, max_pixels)
    except MediaError as error:
        raise MediaError(error.what, where=_name(visual), fix=error.fix) from error
    if min(out) == 0:
        raise MediaError(
            f"a visual of {width}x{height} pixels leaves no patch within max_pixels={max_pixels:g}",
            where=_name(visual),
            fix="Raise max_pixels or total_pixels, or crop the visual",
        )
    return out


def _check_clock(visual: Mapping, total_frames: int, video_fps: float) -> None:
    if total_frames < 1 or not video_fps > 0:
        what = f"a video of {total_frames} frames at {video_fps} frames per second cannot be sampled"
        raise MediaError(what, where=_name(visual), fix="Check that the file is complete, or convert it with ffmpeg")


def _check_size(height: int, width: int, min_pixels: float, max_pixels: float) -> None:
    if min(height, width) <= 0:
        raise MediaError(f"a visual of {width}x{height} pixels is empty", fix="Give a visual with at least one pixel")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise MediaError(
            f"the aspect ratio of a {width}x{height} visual exceeds {MAX_ASPECT_RATIO}", fix="Crop or pad the visual"
        )
    if max_pixels <= 0:
        raise MediaError(f"max_pixels={max_pixels:g} leaves no pixel", fix="Raise max_pixels")
    if max_pixels < min_pixels:
        raise MediaError(
            f"max_pixels={max_pixels:g} is below min_pixels={min_pixels:g}", fix="Lower min_pixels or raise max_pixels"
        )


def _seconds(visual: Mapping, key: str) -> float | None:
    value = visual.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value)):
        raise DataError(f"{key}={value!r} is not a number of seconds", where=_name(visual), fix=f"Correct {key}")
    return value


def positive(visual: Mapping, key: str, default: float) -> float:
    """The visual's value of a key, or the default.

    Raises:
        DataError: it is not a positive number.
    """
    value = visual.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 and key in visual:
        raise DataError(f"{key}={value!r} is not a positive number", where=_name(visual), fix=f"Correct {key}")
    return value


def _name(visual: Mapping) -> str | None:
    """The file of a visual, for an error's `where`."""
    for key in ("video", "image", "image_url"):
        if isinstance(visual.get(key), str | Path):
            return str(visual[key])[:200]
    return None
