"""Pictures of a sample's visual for a report: small JPEGs inside `data:` addresses."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from videoauto_jax.data.image import load_image
from videoauto_jax.data.video import VideoReader
from videoauto_jax.errors import VideoAutoError

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_GAP = 2


def frame_strip(path: str | Path, count: int = 6, height: int = 96) -> str | None:
    """Evenly spaced frames of a video side by side, or an image, as a `data:image/jpeg` address.

    Args:
        path: a video or image file.
        count: most frames.
        height: of the strip in pixels; frames keep their proportions, but none is wider than twice that.

    Returns:
        None where the file cannot be shown: a report is no place to fail.
    """
    try:
        pictures = _pictures(Path(path), count)
    except (VideoAutoError, OSError):
        return None
    strip = _side_by_side([_scaled(picture, height) for picture in pictures])
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pictures(path: Path, count: int) -> list[Image.Image]:
    if path.suffix.lower() in IMAGES:
        return [load_image(path)]
    with VideoReader(path) as reader:
        last = reader.info.frames - 1
        places = np.unique(np.linspace(0, last, count + 2)[1:-1].round().astype(int))
        return [Image.fromarray(frame) for frame in reader.read(places.tolist())]


def _scaled(picture: Image.Image, height: int) -> Image.Image:
    width = min(max(1, round(picture.width * height / picture.height)), 2 * height)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width + _GAP for picture in pictures) - _GAP
    strip = Image.new("RGB", (width, pictures[0].height), (128, 128, 128))
    x = 0
    for picture in pictures:
        strip.paste(picture, (x, 0))
        x += picture.width + _GAP
    return strip
