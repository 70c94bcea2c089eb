"""Model facts, read from an HF folder's `config.json` (flat as on the hub, nested as written by transformers 5)."""

import dataclasses
import json
from pathlib import Path

from videoauto_jax.errors import ModelError

FAMILIES = ("qwen3_vl",)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder (HF `Qwen3VLTextConfig`)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    norm_eps: float
    tied_head: bool


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower (HF `Qwen3VLVisionConfig`)."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_layers: tuple[int, ...]
    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    in_channels: int = 3

    @property
    def patch_dim(self) -> int:
        """Values in one patch: channels x frames x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """A whole model."""

    family: str
    text: TextConfig
    vision: VisionConfig


def read_config(folder: str | Path) -> QwenVLConfig:
    """Reads `config.json` of an HF folder.

    Raises:
        ModelError: no folder, no config, another architecture, a missing fact, an unsupported rope type.
    """
    path = Path(folder) / "config.json"
    try:
        facts = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError("not a model folder: no config.json", where=folder, fix="Give an HF model folder") from None
    except ValueError as error:
        raise ModelError(f"config.json does not parse: {error}", where=path, fix="Download the file again") from None
    if not isinstance(facts, dict):
        raise ModelError("config.json is not a JSON object", where=path, fix="Download the file again")
    return parse_config(facts, where=path)


def parse_config(facts: dict, *, where: object = None) -> QwenVLConfig:
    """The config of an HF `config.json` given as a dict; raises as `read_config`."""
    family = facts.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"unsupported architecture {family!r}", where=where, fix=f"Supported: {', '.join(FAMILIES)}")
    try:
        text = _text(facts | facts.get("text_config", {}), facts)
        vision = _vision(facts["vision_config"])
    except KeyError as error:
        what = f"config.json lacks {error.args[0]!r}"
        raise ModelError(what, where=where, fix="Use the checkpoint's own file") from None
    if sum(text.mrope_section) * 2 != text.head_dim:
        raise ModelError(
            f"mrope_section {list(text.mrope_section)} does not sum to head_dim / 2 = {text.head_dim // 2}", where=where
        )
    return QwenVLConfig(family, text, vision)


def _text(facts: dict, outer: dict) -> TextConfig:
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ModelError(f"unsupported rope type {kind!r}", fix="Only unscaled M-RoPE checkpoints are supported")
    heads = facts["num_attention_heads"]
    return TextConfig(
        vocab_size=facts["vocab_size"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_layers=facts["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=facts.get("num_key_value_heads", heads),
        head_dim=facts.get("head_dim") or 128,
        rope_theta=float(rope.get("rope_theta") or facts["rope_theta"]),
        mrope_section=tuple(rope.get("mrope_section", (24, 20, 20))),
        norm_eps=facts.get("rms_norm_eps", 1e-6),
        tied_head=bool(outer.get("tie_word_embeddings", False)),
    )


def _vision(facts: dict) -> VisionConfig:
    return VisionConfig(
        depth=facts["depth"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_heads=facts["num_heads"],
        out_hidden_size=facts["out_hidden_size"],
        num_position_embeddings=facts["num_position_embeddings"],
        deepstack_layers=tuple(facts["deepstack_visual_indexes"]),
        patch_size=facts.get("patch_size", 16),
        temporal_patch_size=facts.get("temporal_patch_size", 2),
        merge_size=facts.get("spatial_merge_size", 2),
        in_channels=facts.get("in_channels", 3),
    )
