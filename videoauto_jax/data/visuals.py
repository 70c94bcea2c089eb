"""One visual of a chat message, from its file to packed patches."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from videoauto_jax.data.decord_reader import DecordReader
from videoauto_jax.data.image import load_image
from videoauto_jax.data.patches import pack_frames
from videoauto_jax.data.resize import ResizeMode, resize_frame
from videoauto_jax.data.settings import VisionSettings
from videoauto_jax.data.video import VideoReader
from videoauto_jax.data.vision import VideoPlan, plan_frames, plan_image, plan_video
from videoauto_jax.errors import DataError
from videoauto_jax.models.inputs import VisionInputs

ReaderName = Literal["pyav", "decord"]
READERS = {"pyav": VideoReader, "decord": DecordReader}
_SOURCES = {"image": ("image", "image_url", "url", "path", "base64"), "video": ("video", "video_url", "url", "path")}


@dataclasses.dataclass(frozen=True)
class Visual:
    """A visual ready to be placed in a prompt.

    Attributes:
        kind: `image` or `video`.
        grid: patches along (time, height, width).
        timestamps: seconds, the middle of each temporal patch; empty for images.
        second_per_grid: seconds between temporal patches; 0 for images.
        vision: its packed patches.
    """

    kind: str
    grid: tuple[int, int, int]
    timestamps: tuple[float, ...]
    second_per_grid: float
    vision: VisionInputs

    @property
    def nbytes(self) -> int:
        return self.vision.patches.nbytes


def visual_kind(item: Mapping) -> str | None:
    """`image`, `video` or None, by the same marks that Qwen's chat templates look for."""
    for kind in ("image", "video"):
        if item.get("type") in (kind, f"{kind}_url") or kind in item or f"{kind}_url" in item:
            return kind
    return None


def visual_source(item: Mapping, kind: str) -> object:
    """What a visual is given as: a path, bytes, an image, frames.

    Raises:
        DataError: the visual names no source.
    """
    for key in _SOURCES[kind]:
        source = item.get(key)
        if source is not None:
            return source.get("url") if isinstance(source, Mapping) and "url" in source else source
    raise DataError(f"a message has a {kind} without a source", fix=f'Write {{"type": "{kind}", "{kind}": PATH}}')


def load_visual(
    item: Mapping,
    settings: VisionSettings,
    resize: ResizeMode = "upstream",
    threads: int = 1,
    reader: ReaderName = "pyav",
) -> Visual:
    """Reads, samples, resizes and packs one visual.

    Args:
        item: the visual of a message. A video is a path, the bytes of a file, or frames already sampled (a list of
            images or uint8 [T, H, W, 3]) with their `sample_fps`.
        resize: how frames of videos are resized; still images always take Pillow's bicubic.
        threads: decoding threads.
        reader: which library reads frames of videos, a key of `READERS`.

    Raises:
        MediaError: the visual cannot be read or does not fit its budget.
    """
    kind = visual_kind(item)
    source = visual_source(item, kind)
    item = settings.with_budget(item, kind)
    if kind == "image":
        return _load_image(source, item, settings)
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str | Path | bytes):
        plan, frames = _read_video(READERS[reader](source, threads), item, settings, resize)
    else:
        plan, frames = _read_list(source, item, settings, resize)
    return Visual("video", plan.grid, plan.timestamps, plan.second_per_grid, _pack(frames, settings))


def _load_image(source, item, settings) -> Visual:
    image = load_image(source)
    plan = plan_image(image.height, image.width, item, patch_size=settings.patch_size, merge_size=settings.merge_size)
    image = image.resize((plan.width, plan.height))
    return Visual("image", plan.grid, (), 0.0, _pack([np.asarray(image)], settings))


def _read_video(opened, item, settings, resize) -> tuple[VideoPlan, list[np.ndarray]]:
    with opened as reader:
        while True:
            info = reader.info
            sizes = {"patch_size": settings.patch_size, "merge_size": settings.merge_size}
            plan = plan_video(info.frames, info.fps, info.height, info.width, item, **sizes)
            frames = reader.read(plan.indices, lambda f, plan=plan: resize_frame(f, plan.height, plan.width, resize))
            # Fewer come back when the end of the file is damaged; the reader then knows how many there are.
            if len(frames) == len(plan.indices):
                return plan, frames


def _read_list(source, item, settings, resize) -> tuple[VideoPlan, list[np.ndarray]]:
    if not isinstance(source, list | tuple | np.ndarray):
        raise DataError(f"a video cannot be given as {type(source).__name__}", fix="Give a path or a list of frames")
    frames = [np.asarray(load_image(frame)) for frame in source]
    size = frames[0].shape[:2] if frames else (0, 0)
    plan = plan_frames(len(frames), *size, item, settings.patch_size, merge_size=settings.merge_size)
    return plan, [resize_frame(frame, plan.height, plan.width, resize) for frame in frames]


def _pack(frames: list[np.ndarray], settings: VisionSettings) -> VisionInputs:
    sizes = settings.patch_size, settings.position_side, settings.merge_size, settings.window
    return pack_frames(np.stack(frames), *sizes)
