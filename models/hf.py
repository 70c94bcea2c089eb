"""HF folders in and out."""

import json
import shutil
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
from videoauto_jax.models.weights import Row, rows

SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
              "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
              "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")  # fmt: skip

_MIXED = "Use the config.json and all weights of one checkpoint"


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
    layers = [rearrange(tensor, row.pattern, **row.sizes) for tensor in found]
    array = (np.stack(layers) if row.stacked else layers[0]).astype(wanted.dtype)
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
