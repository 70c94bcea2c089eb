"""What a checkpoint folder says about its vision input and its special tokens, read from its JSON files."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from videoauto_jax.data.vision import VIDEO_FRAME_TOKENS, positive
from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import read_image_facts, read_json

FAMILIES = MappingProxyType({"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen3_vl_moe": "qwen3_vl"})
_SIZES = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
_OWN = "Use the checkpoint's own file"
_DEFAULTS = {
    "qwen2_5_vl": {"patch_size": 14, "tokens_per_second": 4, "window_size": 112},
    "qwen3_vl": {"patch_size": 16, "num_position_embeddings": 2304, "window_size": 0},
}


@dataclasses.dataclass(frozen=True)
class VisionSettings:
    """Vision facts of one checkpoint.

    Attributes:
        family: `qwen3_vl` (dense and mixture of experts) or `qwen2_5_vl`.
        patch_size: pixels along the side of a patch.
        merge_size: patches along the side of what becomes one token.
        position_side: side of the square grid of learned position embeddings; 0 if there is none (Qwen2.5-VL).
        window: tokens along the side of an attention window; 0 if there is none (Qwen3-VL).
        tokens_per_second: M-RoPE time positions per second (Qwen2.5-VL); 0 if there are none (Qwen3-VL).
        image_budget: `min_pixels` and `max_pixels` of images that state none, where the folder says so.
        token_ids: special tokens named in config.json (`image_token_id`, …, `eos_token_id`).
    """

    family: str
    patch_size: int
    merge_size: int
    position_side: int
    window: int
    tokens_per_second: int
    image_budget: Mapping[str, int]
    token_ids: Mapping[str, int | list[int]]

    def with_budget(self, visual: Mapping, kind: str) -> dict:
        """The visual with the folder's pixel budget where it states none; a stated maximum lowers a default minimum.

        Raises:
            DataError: a budget or a size is not a positive number.
        """
        defaults = dict(self.image_budget)
        if kind == "video":
            defaults = {"min_pixels": VIDEO_FRAME_TOKENS[0] * (self.patch_size * self.merge_size) ** 2}
        stated = {key: value for key, value in visual.items() if value is not None}
        for key in _SIZES:
            positive(stated, key, 1)
        if "max_pixels" in stated and "min_pixels" in defaults:
            defaults["min_pixels"] = min(defaults["min_pixels"], stated["max_pixels"])
        if "min_pixels" in stated and "max_pixels" in defaults:
            defaults["max_pixels"] = max(defaults["max_pixels"], stated["min_pixels"])
        return {**defaults, **stated}


def read_settings(folder: Path) -> VisionSettings:
    """Settings from config.json and the image processor's file, in the hub's layout or that of transformers 5.

    Raises:
        ModelError: config.json is missing or broken, of another model type, or disagrees with the processor's file.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise ModelError("no config.json", where=folder, fix="Give the folder of a Qwen-VL checkpoint")
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise ModelError(
            f"model type {name!r} is not supported",
            where=folder / "config.json",
            fix=f"Use one of {', '.join(FAMILIES)}",
        )
    images = read_image_facts(folder)
    for part, facts in (("vision_config", config), ("text_config", config), ("size", images)):
        if not isinstance(facts.get(part) or {}, dict):
            raise ModelError(f"{part} is {facts[part]!r}, not an object", where=folder, fix=_OWN)
    vision = {**_DEFAULTS[family], **(config.get("vision_config") or {})}
    _check_sizes(vision, folder)
    _check_patches(vision, images, folder)
    merge_size = vision.get("spatial_merge_size", 2)
    return VisionSettings(
        family=family,
        patch_size=vision["patch_size"],
        merge_size=merge_size,
        position_side=_side(vision.get("num_position_embeddings", 0), folder),
        window=vision["window_size"] // (vision["patch_size"] * merge_size),
        tokens_per_second=vision.get("tokens_per_second", 0),
        image_budget=_image_budget(images, folder),
        token_ids=_token_ids(config, folder),
    )


def _image_budget(images: dict, folder: Path) -> Mapping[str, int]:
    size = images.get("size") or {}
    found = {
        "min_pixels": images.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": images.get("max_pixels") or size.get("longest_edge"),
    }
    stated = {key: value for key, value in found.items() if value}
    for key, value in stated.items():
        _check_whole(f"{key} of images", value, 1, folder)
    return stated


def _check_sizes(vision: dict, folder: Path) -> None:
    least = {"patch_size": 1, "spatial_merge_size": 1}
    least |= dict.fromkeys(("num_position_embeddings", "window_size", "tokens_per_second"), 0)
    for key, smallest in least.items():
        _check_whole(key, vision.get(key, smallest), smallest, folder / "config.json")


def _check_whole(name: str, value: object, smallest: int, where: Path) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ModelError(f"{name} is {value!r}, not a whole number of at least {smallest}", where=where, fix=_OWN)


def _check_patches(vision: dict, images: dict, folder: Path) -> None:
    for ours, theirs in (("patch_size", "patch_size"), ("spatial_merge_size", "merge_size")):
        if ours in vision and images.get(theirs) not in (None, vision[ours]):
            raise ModelError(
                f"{theirs} is {images[theirs]} for the image processor and {vision[ours]} for the model",
                where=folder,
                fix="Restore the processor files that belong to this config.json",
            )
    if vision.get("temporal_patch_size", 2) != 2:
        raise ModelError("temporal_patch_size is not 2", where=folder / "config.json", fix=_OWN)


def _side(positions: int, folder: Path) -> int:
    side = math.isqrt(positions)
    if side**2 != positions:
        raise ModelError(f"num_position_embeddings={positions} is not a square", where=folder / "config.json", fix=_OWN)
    return side


def _token_ids(config: dict, folder: Path) -> dict[str, int | list[int]]:
    """Nested text_config first, the top level over it, generation_config.json (which decides what ends a text) last."""
    text = config.get("text_config") or {}
    generation = read_json(folder / "generation_config.json") or {}
    found = {}
    for name, source in (("config", text), ("config", config), ("generation_config", generation)):
        stated = {k: v for k, v in source.items() if k.endswith("_token_id") and v is not None}
        for key, value in stated.items():
            ids = value if isinstance(value, list) and value else [value]
            if not all(isinstance(i, int) for i in ids):
                raise ModelError(f"{key} is {value!r}, not a token id", where=folder / f"{name}.json", fix=_OWN)
        found.update(stated)
    return found
