"""Opening an image, whatever it is given as."""

import base64
import binascii
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from videoauto_jax.errors import MediaError

_FIX = "Check that the file is a complete image (PNG, JPEG, WebP, …)"


def load_image(source: object) -> Image.Image:
    """An RGB image.

    Transparent pixels of an RGBA image are composited on white; every other mode is converted.

    Args:
        source: a path or `file://` URL, encoded bytes, base64 text (with or without `data:image/…;base64,`), a Pillow
            image, a uint8 array [H, W, 3], or a dictionary with one of these under `bytes`, `url` or `path`.

    Raises:
        MediaError: there is no such file, it is not an image, it is damaged, or the source is of another kind.
    """
    if isinstance(source, Mapping):
        source = next((source[key] for key in ("bytes", "path", "url") if source.get(key) is not None), None)
    try:
        image = _open(source)
        image.load()
        return _rgb(image)
    except (UnidentifiedImageError, OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read an image: {error}", where=_short(source), fix=_FIX) from error


def _open(source: object) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(f"an array must be uint8 [H, W, 3], this is {source.dtype} {list(source.shape)}")
        return Image.fromarray(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return Image.open(io.BytesIO(source))
    if isinstance(source, Path):
        return Image.open(source)
    if not isinstance(source, str):
        raise ValueError(f"an image cannot be given as {type(source).__name__}")
    if source.startswith(("http://", "https://")):
        raise ValueError("it is not on this machine; download it first")
    if source.startswith("data:"):
        return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
    return _open_text(source.removeprefix("file://"))


def _open_text(text: str) -> Image.Image:
    """Text that is a path or, where no such file can exist, base64."""
    if len(text) < 4096 and os.path.exists(text):
        return Image.open(text)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) < 32:
        raise FileNotFoundError("no such file")
    return Image.open(io.BytesIO(data))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _short(source: object) -> str:
    return str(source)[:200] if isinstance(source, str | Path) else type(source).__name__
