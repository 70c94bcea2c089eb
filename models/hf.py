"""HF folders in and out: one table, read in both directions.

A row says which HF tensor is which parameter of ours and how their axes correspond, as an einops pattern from HF's
order to ours. `{i}` counts the layers that ours stacks along a leading axis.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import QwenVLConfig, read_config
from videoauto_jax.models.partition import parameter_spec
from videoauto_jax.models.qwen_vl import QwenVL, parameter_paths

_TEXT = "model.language_model.layers.{i}."
_BLOCK = "model.visual.blocks.{i}."
_DEEPSTACK = "model.visual.deepstack_merger_list.{i}."

TABLE: tuple[tuple[str, str, str], ...] = (
    ("model.language_model.embed_tokens.weight", "text/embed/embedding", "v d -> v d"),
    (_TEXT + "input_layernorm.weight", "text/layers/attention_norm/scale", "d -> d"),
    (_TEXT + "self_attn.q_proj.weight", "text/layers/attention/q/kernel", "(n h) d -> d n h"),
    (_TEXT + "self_attn.k_proj.weight", "text/layers/attention/k/kernel", "(n h) d -> d n h"),
    (_TEXT + "self_attn.v_proj.weight", "text/layers/attention/v/kernel", "(n h) d -> d n h"),
    (_TEXT + "self_attn.o_proj.weight", "text/layers/attention/o/kernel", "d (n h) -> n h d"),
    (_TEXT + "self_attn.q_norm.weight", "text/layers/attention/q_norm/scale", "h -> h"),
    (_TEXT + "self_attn.k_norm.weight", "text/layers/attention/k_norm/scale", "h -> h"),
    (_TEXT + "post_attention_layernorm.weight", "text/layers/mlp_norm/scale", "d -> d"),
    (_TEXT + "mlp.gate_proj.weight", "text/layers/mlp/gate/kernel", "f d -> d f"),
    (_TEXT + "mlp.up_proj.weight", "text/layers/mlp/up/kernel", "f d -> d f"),
    (_TEXT + "mlp.down_proj.weight", "text/layers/mlp/down/kernel", "d f -> f d"),
    ("model.language_model.norm.weight", "text/norm/scale", "d -> d"),
    ("lm_head.weight", "head/kernel", "v d -> d v"),
    ("model.visual.patch_embed.proj.weight", "vision/patch_embed/kernel", "d c t h w -> (c t h w) d"),
    ("model.visual.patch_embed.proj.bias", "vision/patch_embed/bias", "d -> d"),
    ("model.visual.pos_embed.weight", "vision/position_embed/embedding", "p d -> p d"),
    (_BLOCK + "norm1.weight", "vision/blocks/norm1/scale", "d -> d"),
    (_BLOCK + "norm1.bias", "vision/blocks/norm1/bias", "d -> d"),
    (_BLOCK + "attn.qkv.weight", "vision/blocks/attention/qkv/kernel", "(c n h) d -> d c n h"),
    (_BLOCK + "attn.qkv.bias", "vision/blocks/attention/qkv/bias", "(c n h) -> c n h"),
    (_BLOCK + "attn.proj.weight", "vision/blocks/attention/proj/kernel", "d (n h) -> n h d"),
    (_BLOCK + "attn.proj.bias", "vision/blocks/attention/proj/bias", "d -> d"),
    (_BLOCK + "norm2.weight", "vision/blocks/norm2/scale", "d -> d"),
    (_BLOCK + "norm2.bias", "vision/blocks/norm2/bias", "d -> d"),
    (_BLOCK + "mlp.linear_fc1.weight", "vision/blocks/mlp/fc1/kernel", "f d -> d f"),
    (_BLOCK + "mlp.linear_fc1.bias", "vision/blocks/mlp/fc1/bias", "f -> f"),
    (_BLOCK + "mlp.linear_fc2.weight", "vision/blocks/mlp/fc2/kernel", "d f -> f d"),
    (_BLOCK + "mlp.linear_fc2.bias", "vision/blocks/mlp/fc2/bias", "d -> d"),
    *(
        (hf + f"{theirs}.{tensor}", f"{ours}/{module}/{leaf}", pattern)
        for hf, ours in (("model.visual.merger.", "merger"), (_DEEPSTACK, "deepstack_mergers"))
        for theirs, module in (("norm", "norm"), ("linear_fc1", "fc1"), ("linear_fc2", "fc2"))
        for tensor, leaf, pattern in (
            ("weight", "scale" if module == "norm" else "kernel", "d -> d" if module == "norm" else "f d -> d f"),
            ("bias", "bias", "d -> d"),
        )
    ),
)

SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
              "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
              "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")  # fmt: skip

_MIXED = "Use the config.json and all weights of one checkpoint"


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

    def to_ours(self, tensors: list[np.ndarray]) -> np.ndarray:
        """HF tensors, one per stacked layer, to our array."""
        arrays = [rearrange(tensor, self.pattern, **self.sizes) for tensor in tensors]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_hf(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Our array to named HF tensors."""
        for key, layer in zip(self.keys, array if self.stacked else array[None]):
            yield key, np.ascontiguousarray(self._reversed(layer))

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that each HF tensor has if our array has `shape`."""
        return self._reversed(np.broadcast_to(np.False_, shape[1:] if self.stacked else shape)).shape

    def _reversed(self, layer: np.ndarray) -> np.ndarray:
        theirs, ours = self.pattern.split(" -> ")
        return rearrange(layer, f"{ours} -> {theirs}", **self.sizes)


def rows(config: QwenVLConfig) -> list[Row]:
    """The table for one model: keys written out, head and patch sizes known."""
    text, vision = config.text, config.vision
    counts = {_TEXT: text.num_layers, _BLOCK: vision.depth, _DEEPSTACK: len(vision.deepstack_layers)}
    made = []
    for key, path, pattern in TABLE:
        if path == "head/kernel" and text.tied_head:
            continue
        count = next((n for prefix, n in counts.items() if key.startswith(prefix)), None)
        keys = (key,) if count is None else tuple(key.format(i=i) for i in range(count))
        made.append(Row(keys, path, pattern, count is not None, _sizes(config, path)))
    return made


def _sizes(config: QwenVLConfig, path: str) -> dict[str, int]:
    vision = config.vision
    if path.startswith("text/layers/attention/"):
        return {"h": config.text.head_dim}
    if path.startswith("vision/blocks/attention/qkv"):
        return {"c": 3, "h": vision.head_dim}
    if path.startswith("vision/blocks/attention/proj/kernel"):
        return {"h": vision.head_dim}
    if path == "vision/patch_embed/kernel":
        side = vision.patch_size
        return {"c": vision.in_channels, "t": vision.temporal_patch_size, "h": side, "w": side}
    return {}


def load_model(
    folder: str | Path, mesh: jax.sharding.Mesh | None = None, dtype: str = "bfloat16", param_dtype: str | None = None
) -> QwenVL:
    """An HF folder as a model, every parameter placed straight into its sharding.

    Args:
        folder: HF model folder (config.json, safetensors).
        mesh: device mesh; None puts everything on the default device.
        dtype: dtype of activations and matrix products.
        param_dtype: dtype of stored parameters, by default `dtype`; training keeps float32 masters.

    Raises:
        ModelError: not such a folder, or tensors that are missing, unexpected, misshapen or truncated; named.
    """
    folder = Path(folder)
    config = read_config(folder)
    stored = jnp.dtype(param_dtype or dtype)
    model = abstract_model(config, dtype, stored)
    graph, state = nnx.split(model)
    wanted = parameter_paths(state)
    with _Tensors(folder) as tensors:
        table = rows(config)
        tensors.check_keys({key for row in table for key in row.keys}, tied=config.text.tied_head)
        arrays = {row.path: _place(row, tensors, wanted[row.path], mesh) for row in table}
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(arrays["/".join(map(str, path))])
    return nnx.merge(graph, state)


def abstract_model(config: QwenVLConfig, dtype: str, param_dtype: str) -> QwenVL:
    """The model with `jax.ShapeDtypeStruct` parameters: shapes without memory."""
    make = lambda: QwenVL(config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype), rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.eval_shape(make)


def _place(row: Row, tensors: "_Tensors", wanted: jax.ShapeDtypeStruct, mesh: jax.sharding.Mesh | None) -> jax.Array:
    found, shape = [tensors.read(key) for key in row.keys], row.hf_shape(wanted.shape)
    for key, tensor in zip(row.keys, found):
        if tensor.shape != shape:
            raise ModelError(f"{key} is {tensor.shape}, config.json asks for {shape}", where=tensors.folder, fix=_MIXED)
    array = row.to_ours(found).astype(wanted.dtype)
    if mesh is None:
        return jnp.asarray(array)
    spec = parameter_spec(row.path, array.shape, mesh)
    return jax.make_array_from_callback(array.shape, jax.sharding.NamedSharding(mesh, spec), lambda index: array[index])


class _Tensors:
    """The safetensors files of a folder as one mapping."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError("no safetensors files", where=folder, fix="Download the model's weights into this folder")
        self._open, self._where = [], {}
        for file in files:
            try:
                handle = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"unreadable weights: {error}", where=file, fix="Download this file again") from None
            self._open.append(handle)
            self._where.update(dict.fromkeys(handle.keys(), handle))

    def __enter__(self) -> "_Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._where.clear()

    def read(self, key: str) -> np.ndarray:
        return self._where[key].get_tensor(key)

    def check_keys(self, wanted: set[str], tied: bool) -> None:
        found = set(self._where) - ({"lm_head.weight"} if tied else set())
        for what, keys in (("missing", wanted - found), ("unexpected", found - wanted)):
            if keys:
                shown = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
                raise ModelError(f"{what} weights: {shown}", where=self.folder, fix=_MIXED)


def save_model(
    model: QwenVL, folder: str | Path, like: str | Path, *, dtype: str | None = None, max_shard_size: str = "5GB"
) -> None:
    """Writes an HF folder that transformers, vLLM and SGLang load.

    Args:
        model: the model; its parameters are gathered to the host one by one.
        folder: where to write; created.
        like: the HF folder this model comes from, source of config, tokenizer and processor files.
        dtype: dtype of the written tensors, by default the parameters' own.
        max_shard_size: size at which a safetensors file is full.
    """
    folder, like = Path(folder), Path(like)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = parameter_paths(model)
    tensors: dict[str, np.ndarray] = {}
    for row in rows(model.config):
        array = np.asarray(jax.device_get(arrays[row.path]))
        tensors.update(row.to_hf(array.astype(jnp.dtype(dtype)) if dtype else array))
    write_tensors(tensors, folder, max_shard_size)
    for name in SIDE_FILES:
        if (like / name).exists() and not folder.samefile(like):
            shutil.copy(like / name, folder / name)
    facts = _with_dtype(json.loads((like / "config.json").read_text()), str(next(iter(tensors.values())).dtype))
    # Last: a folder with a config.json is whole.
    _write_text(folder / "config.json", json.dumps(facts, indent=2) + "\n")


def _with_dtype(facts: dict, dtype: str) -> dict:
    """The config with its dtype, and those of the parts that state one, replaced."""
    parts = {key: value for key, value in facts.items() if isinstance(value, dict) and "dtype" in value}
    parts = {key: _with_dtype(value, dtype) for key, value in parts.items()}
    return {key: value for key, value in facts.items() if key != "torch_dtype"} | parts | {"dtype": dtype}


def write_tensors(tensors: dict[str, np.ndarray], folder: Path, max_shard_size: str = "5GB") -> None:
    """Writes `model*.safetensors` and, if there are several, their index."""
    plan = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, keys in plan.filename_to_tensors.items():
        temporary = folder / f".{file}.tmp"
        save_file({key: tensors[key] for key in keys}, temporary, metadata={"format": "pt"})
        temporary.rename(folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)
