"""Every way of giving an image, and the refusal of what is none."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videoauto_jax.data.image import load_image
from videoauto_jax.errors import MediaError

CASES = json.loads((Path(__file__).parent / "vision_cases.json").read_text())
PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_every_source_is_the_same_image(tmp_path):
    image = Image.fromarray(PIXELS)
    data = encoded(image)
    text = base64.b64encode(data).decode()
    path = tmp_path / "a.png"
    path.write_bytes(data)
    sources = [path, str(path), f"file://{path}", data, bytearray(data), text, f"data:image/png;base64,{text}", image]
    for source in [*sources, PIXELS, {"bytes": data}, {"url": str(path)}, {"bytes": None, "path": str(path)}]:
        np.testing.assert_array_equal(np.asarray(load_image(source)), PIXELS)


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 128))
    assert list(load_image(image).getpixel((0, 0))) == CASES["rgba_to_rgb_half_alpha_10_20_30"]
    assert load_image(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_pixel_case_of_a_resized_image():
    case = CASES["pixel_case_image"]
    image = load_image(((np.arange(37 * 53 * 3) * 7919) % 256).astype(np.uint8).reshape(37, 53, 3))
    height, width = case["out_hw"]
    out = np.asarray(image.resize((width, height)))
    assert out.sum(dtype=int) == case["sum"]
    assert out[0, :16, 0].tolist() == case["first_row_r"]


def test_what_is_no_image_is_named(tmp_path):
    data = encoded(Image.fromarray(PIXELS))
    broken = tmp_path / "broken.png"
    broken.write_bytes(data[: len(data) // 2])
    garbage = tmp_path / "garbage.jpg"
    garbage.write_bytes(b"no image at all" * 20)
    for path in (broken, garbage, str(tmp_path / "missing.png"), tmp_path):
        with pytest.raises(MediaError, match=str(path)):
            load_image(path)
    unconvertible = Image.new("La", (4, 4))
    for source in (
        unconvertible,
        b"",
        3,
        None,
        {},
        np.zeros((4, 4)),
        "https://example.com/a.png",
        "data:image/png;base64,AAAA",
    ):
        with pytest.raises(MediaError, match="cannot read an image"):
            load_image(source)
