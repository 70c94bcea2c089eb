"""Which HF tensor is which parameter of ours: one table, read in both directions.

A row says how the axes of the two correspond, as an einops pattern from HF's order to ours. `{i}` counts the layers
that ours stacks along a leading axis.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from einops import rearrange

from videoauto_jax.models.config import QwenVLConfig

Rule = tuple[str, str, str]

# Qwen2.5-VL's released files keep the names of transformers 4.49, which later versions write too unless told otherwise.
PREFIXES = {
    "qwen2_5_vl": {"text": "model.", "vision": "visual."},
    "qwen3_vl": {"text": "model.language_model.", "vision": "model.visual."},
    "qwen3_vl_moe": {"text": "model.language_model.", "vision": "model.visual."},
}

_TEXT: tuple[Rule, ...] = (
    ("embed_tokens.weight", "text/embed/embedding", "v d -> v d"),
    ("layers.{i}.input_layernorm.weight", "text/layers/attention_norm/scale", "d -> d"),
    ("layers.{i}.self_attn.q_proj.weight", "text/layers/attention/q/kernel", "(n h) d -> d n h"),
    ("layers.{i}.self_attn.k_proj.weight", "text/layers/attention/k/kernel", "(n h) d -> d n h"),
    ("layers.{i}.self_attn.v_proj.weight", "text/layers/attention/v/kernel", "(n h) d -> d n h"),
    ("layers.{i}.self_attn.o_proj.weight", "text/layers/attention/o/kernel", "d (n h) -> n h d"),
    ("layers.{i}.post_attention_layernorm.weight", "text/layers/mlp_norm/scale", "d -> d"),
    ("norm.weight", "text/norm/scale", "d -> d"),
)
_QKV_BIAS: tuple[Rule, ...] = tuple(
    (f"layers.{{i}}.self_attn.{name}_proj.bias", f"text/layers/attention/{name}/bias", "(n h) -> n h") for name in "qkv"
)
_QK_NORM: tuple[Rule, ...] = tuple(
    (f"layers.{{i}}.self_attn.{name}_norm.weight", f"text/layers/attention/{name}_norm/scale", "h -> h")
    for name in "qk"
)
_DENSE: tuple[Rule, ...] = (
    ("layers.{i}.mlp.gate_proj.weight", "text/layers/mlp/gate/kernel", "f d -> d f"),
    ("layers.{i}.mlp.up_proj.weight", "text/layers/mlp/up/kernel", "f d -> d f"),
    ("layers.{i}.mlp.down_proj.weight", "text/layers/mlp/down/kernel", "d f -> f d"),
)
_EXPERTS: tuple[Rule, ...] = (
    ("layers.{i}.mlp.gate.weight", "text/layers/mlp/router/kernel", "e d -> d e"),
    ("layers.{i}.mlp.experts.gate_up_proj", "text/layers/mlp/experts/gate_up/kernel", "e d (c f) -> e c d f"),
    ("layers.{i}.mlp.experts.down_proj", "text/layers/mlp/experts/down/kernel", "e f d -> e f d"),
)
# What transformers 5 writes of a model that it made itself; released files and 4.57 have the order above.
_TRANSPOSED = {
    "text/layers/mlp/experts/gate_up/kernel": "e (c f) d -> e c d f",
    "text/layers/mlp/experts/down/kernel": "e d f -> e f d",
}
_ATTENTION: tuple[Rule, ...] = (
    ("blocks.{i}.attn.qkv.weight", "vision/blocks/attention/qkv/kernel", "(c n h) d -> d c n h"),
    ("blocks.{i}.attn.qkv.bias", "vision/blocks/attention/qkv/bias", "(c n h) -> c n h"),
    ("blocks.{i}.attn.proj.weight", "vision/blocks/attention/proj/kernel", "d (n h) -> n h d"),
    ("blocks.{i}.attn.proj.bias", "vision/blocks/attention/proj/bias", "d -> d"),
    ("patch_embed.proj.weight", "vision/patch_embed/kernel", "d c t h w -> (c t h w) d"),
)
_WINDOW_TOWER: tuple[Rule, ...] = (
    ("blocks.{i}.norm1.weight", "vision/blocks/norm1/scale", "d -> d"),
    ("blocks.{i}.norm2.weight", "vision/blocks/norm2/scale", "d -> d"),
    *(
        (f"blocks.{{i}}.mlp.{name}_proj.{tensor}", f"vision/blocks/mlp/{name}/{leaf}", pattern)
        for name in ("gate", "up", "down")
        for tensor, leaf, pattern in (("weight", "kernel", "f d -> d f"), ("bias", "bias", "d -> d"))
    ),
    ("merger.ln_q.weight", "merger/norm/scale", "d -> d"),
    *(
        (f"merger.mlp.{index}.{tensor}", f"merger/{module}/{leaf}", pattern)
        for index, module in ((0, "fc1"), (2, "fc2"))
        for tensor, leaf, pattern in (("weight", "kernel", "f d -> d f"), ("bias", "bias", "d -> d"))
    ),
)
_DEEPSTACK_TOWER: tuple[Rule, ...] = (
    ("patch_embed.proj.bias", "vision/patch_embed/bias", "d -> d"),
    ("pos_embed.weight", "vision/position_embed/embedding", "p d -> p d"),
    *(
        (f"blocks.{{i}}.{theirs}.{tensor}", f"vision/blocks/{ours}/{leaf}", pattern)
        for theirs, ours, kind in (("norm1", "norm1", "scale"), ("norm2", "norm2", "scale"),
                                   ("mlp.linear_fc1", "mlp/fc1", "kernel"), ("mlp.linear_fc2", "mlp/fc2", "kernel"))
        for tensor, leaf, pattern in (
            ("weight", kind, "d -> d" if kind == "scale" else "f d -> d f"), ("bias", "bias", "d -> d")
        )
    ),
    *(
        (f"{theirs}{module}.{tensor}", f"{ours}/{name}/{leaf}", pattern)
        for theirs, ours in (("merger.", "merger"), ("deepstack_merger_list.{i}.", "deepstack_mergers"))
        for module, name in (("norm", "norm"), ("linear_fc1", "fc1"), ("linear_fc2", "fc2"))
        for tensor, leaf, pattern in (
            ("weight", "scale" if name == "norm" else "kernel", "d -> d" if name == "norm" else "f d -> d f"),
            ("bias", "bias", "d -> d"),
        )
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of ours and the HF tensors that make it.

    Attributes:
        keys: names of the HF tensors, one per layer if `stacked`.
        path: our parameter.
        pattern: axes of an HF tensor and of ours, without the layer axis.
        stacked: ours has a leading layer axis.
        sizes: of those axes in `pattern` that the tensors alone do not tell.
    """

    keys: tuple[str, ...]
    path: str
    pattern: str
    stacked: bool
    sizes: dict[str, int]

    def to_hf(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Our array to named HF tensors."""
        for key, layer in zip(self.keys, array if self.stacked else array[None]):
            yield key, np.ascontiguousarray(self.reversed(layer))

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that each HF tensor has if our array has `shape`."""
        return self.reversed(np.broadcast_to(np.False_, shape[1:] if self.stacked else shape)).shape

    def turned(self, tensor: np.ndarray) -> np.ndarray:
        """One HF tensor in our order of axes."""
        return rearrange(tensor, self.pattern, **self.sizes)

    def reversed(self, layer: np.ndarray) -> np.ndarray:
        """One layer of ours in HF's order of axes."""
        theirs, ours = self.pattern.split(" -> ")
        return rearrange(layer, f"{ours} -> {theirs}", **self.sizes)


def rows(config: QwenVLConfig, *, transposed_experts: bool = False) -> list[Row]:
    """The table for one model: keys written out, head and patch sizes known.

    Args:
        transposed_experts: expert tensors as transformers 5 writes them, `[E, 2I, D]` and `[E, D, I]`.
    """
    text, vision = config.text, config.vision
    counts = {"text/layers": text.num_layers, "vision/blocks": vision.depth}
    counts["deepstack_mergers"] = len(vision.deepstack_layers)
    made = []
    for key, path, pattern in _rules(config):
        count = next((n for prefix, n in counts.items() if path.startswith(f"{prefix}/")), None)
        if count == 0:  # no DeepStack
            continue
        keys = (key,) if count is None else tuple(key.format(i=i) for i in range(count))
        pattern = _TRANSPOSED.get(path, pattern) if transposed_experts and text.experts else pattern
        made.append(Row(keys, path, pattern, count is not None, _sizes(config, path)))
    return made


def released_key(key: str, family: str) -> str:
    """What released files call a tensor that is stored under its module's name in transformers 4.52 and later.

    `save_pretrained(save_original_format=False)` and trainers that save a state dict as it is write those names.
    """
    for part, module in PREFIXES["qwen3_vl"].items():
        if key.startswith(module):
            return PREFIXES[family][part] + key.removeprefix(module)
    return key


def _rules(config: QwenVLConfig) -> Iterator[Rule]:
    text, prefix = config.text, PREFIXES[config.family]
    chosen = [_TEXT, _EXPERTS if text.experts else _DENSE]
    chosen += [_QKV_BIAS] if text.qkv_bias else []
    chosen += [_QK_NORM] if text.qk_norm else []
    for key, path, pattern in (rule for rules in chosen for rule in rules):
        yield prefix["text"] + key, path, pattern
    for key, path, pattern in _ATTENTION + (_WINDOW_TOWER if config.family == "qwen2_5_vl" else _DEEPSTACK_TOWER):
        yield prefix["vision"] + key, path, pattern
    if not text.tied_head:
        yield "lm_head.weight", "head/kernel", "v d -> d v"


def _sizes(config: QwenVLConfig, path: str) -> dict[str, int]:
    vision = config.vision
    if path.startswith("text/layers/attention/"):
        return {"h": config.text.head_dim}
    if path == "text/layers/mlp/experts/gate_up/kernel":
        return {"c": 2}
    if path.startswith("vision/blocks/attention/qkv"):
        return {"c": 3, "h": vision.head_dim}
    if path.startswith("vision/blocks/attention/proj/kernel"):
        return {"h": vision.head_dim}
    if path == "vision/patch_embed/kernel":
        side = vision.patch_size
        return {"c": vision.in_channels, "t": vision.temporal_patch_size, "h": side, "w": side}
    return {}
