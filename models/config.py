"""Model facts, read from an HF folder's JSON files (flat as on the hub, nested as written by transformers 5)."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from videoauto_jax.errors import ModelError

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_OWN = "Use the checkpoint's own file"
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """The mixture of experts that takes the place of every decoder layer's MLP (HF `Qwen3VLMoeTextConfig`).

    Attributes:
        count: experts of a layer.
        chosen: experts that see a token.
        intermediate_size: feed-forward width of one expert.
    """

    count: int
    chosen: int
    intermediate_size: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder (HF `Qwen2_5_VLTextConfig`, `Qwen3VLTextConfig`, `Qwen3VLMoeTextConfig`).

    Attributes:
        mrope_section: frequencies that turn with time, height and width.
        mrope_interleaved: they take turns (Qwen3-VL) instead of standing in three blocks (Qwen2.5-VL).
        qkv_bias: biases on the projections of queries, keys and values (Qwen2.5-VL).
        qk_norm: RMS norms on the heads of queries and keys (Qwen3-VL).
        experts: the mixture of experts, or None for a dense MLP.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    mrope_interleaved: bool
    norm_eps: float
    tied_head: bool
    qkv_bias: bool
    qk_norm: bool
    experts: ExpertConfig | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """What the vision towers have in common.

    Attributes:
        image_mean, image_std: normalisation of RGB values in 0..1.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    temporal_patch_size: int = 2
    merge_size: int = 2
    in_channels: int = 3
    deepstack_layers: tuple[int, ...] = ()

    @property
    def patch_dim(self) -> int:
        """Values in one patch: channels x frames x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2_5VisionConfig(VisionConfig):
    """The tower with windowed attention (HF `Qwen2_5_VLVisionConfig`).

    Attributes:
        window_size: pixels along the side of an attention window.
        full_attention_layers: blocks that attend to whole frames instead of windows.
    """

    window_size: int
    full_attention_layers: tuple[int, ...]

    @property
    def window_patches(self) -> int:
        """Most patches in one window."""
        return (self.window_size // self.merge_size // self.patch_size * self.merge_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VisionConfig(VisionConfig):
    """The tower with learned positions and DeepStack (HF `Qwen3VLVisionConfig`)."""

    num_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """A whole model."""

    family: str
    text: TextConfig
    vision: Qwen2_5VisionConfig | Qwen3VisionConfig


def resolve_folder(path: str | Path, *, weights: bool = False) -> Path:
    """A local folder; of a model named as on the Hugging Face hub the small files, or all, are downloaded.

    Raises:
        ModelError: there is no such folder, and no such model can be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    cause = None
    if isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.jinja", "merges.txt", *(["*.safetensors"] if weights else [])]
            return Path(snapshot_download(path, allow_patterns=patterns))
        except Exception as error:  # the hub raises many unrelated kinds, offline and online
            cause = error
    raise ModelError("no such checkpoint folder", where=path, fix="Check the path, or download the model") from cause


def read_config(folder: str | Path) -> QwenVLConfig:
    """Reads `config.json` of an HF folder, and the normalisation of pixels from its image processor's file.

    Raises:
        ModelError: no folder, no config, another architecture, a missing fact, an unsupported rope type.
    """
    found = resolve_folder(folder)
    path = found / "config.json"
    facts = read_json(path)
    if facts is None:
        raise ModelError("not a model folder: no config.json", where=folder, fix="Give an HF model folder")
    return parse_config(facts, read_image_facts(found), where=path)


def read_image_facts(folder: Path) -> dict:
    """What the image processor's file says, in the hub's layout or that of transformers 5; empty without one.

    Raises:
        ModelError: the file is not a JSON object.
    """
    nested = (read_json(folder / "processor_config.json") or {}).get("image_processor")
    return nested or read_json(folder / "preprocessor_config.json") or {}


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, or None if there is no file.

    Raises:
        ModelError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise ModelError(f"broken JSON: {error}", where=path, fix="Download the file again") from error
    if not isinstance(found, dict):
        raise ModelError("not a JSON object", where=path, fix="Download the file again")
    return found


def parse_config(facts: dict, images: dict | None = None, *, where: object = None) -> QwenVLConfig:
    """The config of an HF `config.json` given as a dict; raises as `read_config`.

    Args:
        images: the image processor's facts; what the family was released with where they say nothing.
    """
    family = facts.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"unsupported architecture {family!r}", where=where, fix=f"Supported: {', '.join(FAMILIES)}")
    try:
        text = _text(facts | (facts.get("text_config") or {}), facts, family)
        vision = _vision(facts.get("vision_config"), images or {}, family)
    except KeyError as error:
        what = f"config.json lacks {error.args[0]!r}"
        raise ModelError(what, where=where, fix=_OWN) from None
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ModelError(f"config.json holds a fact of a wrong kind: {error}", where=where, fix=_OWN) from None
    except ModelError as error:
        raise ModelError(error.what, where=where, fix=error.fix) from None
    for wrong in _contradictions(text, vision):
        raise ModelError(wrong, where=where, fix=_OWN)
    return QwenVLConfig(family, text, vision)


def _contradictions(text: TextConfig, vision: VisionConfig) -> Iterator[str]:
    """What keeps facts from making a model, the plainest first."""
    for part in (text, vision, *([text.experts] if text.experts else [])):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.type is int and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                yield f"{field.name} of {type(part).__name__} is {value!r}, not a whole number above 0"
            if field.type is float and not (isinstance(value, int | float) and value > 0):
                yield f"{field.name} of {type(part).__name__} is {value!r}, not a number above 0"
    yield from _wrong_lists(text, vision)
    if sum(text.mrope_section) * 2 != text.head_dim:
        yield f"mrope_section {list(text.mrope_section)} does not sum to head_dim / 2 = {text.head_dim // 2}"
    if text.num_heads % text.num_kv_heads or vision.hidden_size % vision.num_heads:
        groups = f"{text.num_heads} by {text.num_kv_heads} key/value heads, {vision.hidden_size} by {vision.num_heads}"
        yield f"heads do not divide: {groups} in the vision tower"
    if vision.head_dim % 4:
        yield f"heads of {vision.head_dim} in the vision tower: their rotation by row and column needs a multiple of 4"
    if text.experts and text.experts.chosen > text.experts.count:
        yield f"{text.experts.chosen} of {text.experts.count} experts cannot be chosen"
    if any(tap not in range(vision.depth) for tap in vision.deepstack_layers):
        yield f"deepstack_visual_indexes {list(vision.deepstack_layers)} are not all of the {vision.depth} blocks"
    if isinstance(vision, Qwen2_5VisionConfig) and not vision.window_patches:
        yield f"window_size {vision.window_size} holds not one token of {vision.merge_size * vision.patch_size} pixels"


def _wrong_lists(text: TextConfig, vision: VisionConfig) -> Iterator[str]:
    whole = lambda values: all(isinstance(value, int) for value in values)  # noqa: E731
    if len(text.mrope_section) != 3 or not whole(text.mrope_section) or min(text.mrope_section) < 0:
        yield f"mrope_section {list(text.mrope_section)} is not three whole numbers"
    for name in ("image_mean", "image_std"):
        values = getattr(vision, name)
        if len(values) != vision.in_channels or not all(isinstance(value, int | float) for value in values):
            yield f"{name} {list(values)} is not one number for each of {vision.in_channels} channels"
    if isinstance(vision, Qwen2_5VisionConfig) and not whole(vision.full_attention_layers):
        yield f"fullatt_block_indexes {list(vision.full_attention_layers)} are not numbers of blocks"


def _text(facts: dict, outer: dict, family: str) -> TextConfig:
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ModelError(f"unsupported rope type {kind!r}", fix="Only unscaled M-RoPE checkpoints are supported")
    if facts.get("use_sliding_window"):
        raise ModelError("sliding-window attention is not supported", fix="Set use_sliding_window to false")
    _check_activation(facts, "silu")
    heads, old = facts["num_attention_heads"], family == "qwen2_5_vl"
    size = {"qwen3_vl": 128}.get(family) or facts["hidden_size"] // heads
    return TextConfig(
        vocab_size=facts["vocab_size"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_layers=facts["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=facts.get("num_key_value_heads") or heads,
        head_dim=facts.get("head_dim") or size,
        rope_theta=float(rope.get("rope_theta") or facts["rope_theta"]),
        mrope_section=tuple(rope.get("mrope_section") or ((16, 24, 24) if old else (24, 20, 20))),
        mrope_interleaved=not old,
        norm_eps=facts.get("rms_norm_eps", 1e-5 if old else 1e-6),
        tied_head=bool(outer.get("tie_word_embeddings") or (old and facts.get("tie_word_embeddings"))),
        qkv_bias=old,
        qk_norm=not old,
        experts=_experts(facts) if family == "qwen3_vl_moe" else None,
    )


def _experts(facts: dict) -> ExpertConfig:
    if facts.get("mlp_only_layers") or facts.get("decoder_sparse_step", 1) != 1:
        raise ModelError("layers without experts among those with", fix="All layers must be sparse or none")
    count = facts.get("num_local_experts") or facts["num_experts"]  # as transformers 5 writes it, and as on the hub
    return ExpertConfig(count, facts["num_experts_per_tok"], facts["moe_intermediate_size"])


def _check_activation(facts: dict, served: str) -> None:
    if facts.get("hidden_act", served) != served:
        raise ModelError(f"unsupported hidden_act {facts['hidden_act']!r}", fix=f"Only {served!r} is supported here")


def _check_vision(facts: dict, served: str) -> None:
    _check_activation(facts, served)
    if facts.get("spatial_merge_size", 2) != 2:
        raise ModelError(f"unsupported spatial_merge_size {facts['spatial_merge_size']!r}", fix="Only 2 is supported")
    taps = facts.get("deepstack_visual_indexes") or []
    if list(taps) != sorted(set(taps)):
        # transformers adds the features in the order of the layers but takes the mergers in that of the list
        raise ModelError(f"deepstack_visual_indexes {list(taps)} do not rise", fix="List each layer once, in order")


def _vision(facts: object, images: dict, family: str) -> Qwen2_5VisionConfig | Qwen3VisionConfig:
    if not isinstance(facts, dict):
        raise KeyError("vision_config")
    old = family == "qwen2_5_vl"
    _check_vision(facts, "silu" if old else "gelu_pytorch_tanh")
    mean, std = (
        tuple(images.get(key) or default) for key, default in zip(("image_mean", "image_std"), _CLIP if old else _HALF)
    )
    common = {
        "depth": facts["depth"],
        "hidden_size": facts["hidden_size"],
        "intermediate_size": facts["intermediate_size"],
        "num_heads": facts["num_heads"],
        "out_hidden_size": facts["out_hidden_size"],
        "patch_size": facts.get("patch_size", 14 if old else 16),
        "temporal_patch_size": facts.get("temporal_patch_size", 2),
        "merge_size": facts.get("spatial_merge_size", 2),
        "in_channels": facts.get("in_channels") or facts.get("in_chans", 3),
        "image_mean": mean,
        "image_std": std,
    }
    if old:
        full = tuple(facts.get("fullatt_block_indexes", (7, 15, 23, 31)))
        return Qwen2_5VisionConfig(**common, window_size=facts.get("window_size", 112), full_attention_layers=full)
    return Qwen3VisionConfig(
        **common,
        num_position_embeddings=facts["num_position_embeddings"],
        deepstack_layers=tuple(facts["deepstack_visual_indexes"]),
    )
