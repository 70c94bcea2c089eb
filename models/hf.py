"""HF folders in and out."""

import functools
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub import split_state_dict_into_shards_factory

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import QwenVLConfig, read_config, read_json, resolve_folder
from videoauto_jax.models.lazy import LazyParameter
from videoauto_jax.models.placing import gather, place
from videoauto_jax.models.qwen_vl import QwenVL, parameter_paths
from videoauto_jax.models.tensor_files import INDEX, StoredTensor, Written, stored_tensors, write_file
from videoauto_jax.models.weights import Row, released_key, rows

SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
              "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
              "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")  # fmt: skip

HEAD, EMBEDDING = "lm_head.weight", "text/embed/embedding"
_MIXED = "Use the config.json and all weights of one checkpoint"


def load_model(
    folder: str | Path, mesh: jax.sharding.Mesh | None = None, dtype: str = "bfloat16", param_dtype: str | None = None
) -> QwenVL:
    """An HF folder as a model, every parameter streamed straight into its sharding.

    Args:
        folder: HF model folder (config.json, safetensors), or the name of a model on the Hugging Face hub.
        mesh: device mesh; None puts everything on the default device.
        dtype: dtype of activations and matrix products.
        param_dtype: dtype of stored parameters, by default `dtype`; training keeps float32 masters.

    Raises:
        ModelError: not such a folder, or tensors that are missing, unexpected, misshapen or truncated; named.
    """
    folder = resolve_folder(folder, weights=True)
    config = read_config(folder)
    graph, state = nnx.split(abstract_model(config, dtype, jnp.dtype(param_dtype or dtype)))
    wanted = parameter_paths(state)
    sources = _sources(folder, config, wanted)
    for path, leaf in nnx.to_flat_state(state):
        row, tensors = sources["/".join(map(str, path))]
        leaf.set_value(place(row, tensors, wanted[row.path], mesh))
    return nnx.merge(graph, state)


def lazy_parameters(folder: str | Path) -> dict[str, LazyParameter]:
    """The parameters of an HF folder under their paths, as float32, none of them read yet; raises as `load_model`."""
    folder = resolve_folder(folder, weights=True)
    config = read_config(folder)
    wanted = parameter_paths(abstract_model(config, "float32", "float32"))
    sources = _sources(folder, config, wanted)
    lazy = lambda path: LazyParameter(wanted[path].shape, wanted[path].dtype, functools.partial(_read, *sources[path]))  # noqa: E731
    return {path: lazy(path) for path in wanted}


def _read(row: Row, tensors: list[StoredTensor], layer: int | None) -> np.ndarray:
    return row.turned(tensors[layer or 0].read())


def abstract_model(config: QwenVLConfig, dtype: str, param_dtype: str) -> QwenVL:
    """The model with `jax.ShapeDtypeStruct` parameters: shapes without memory."""
    make = lambda: QwenVL(config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype), rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.eval_shape(make)


def _stored(folder: Path, config: QwenVLConfig) -> dict[str, StoredTensor]:
    """The folder's tensors under the names of released files."""
    return {released_key(key, config.family): tensor for key, tensor in stored_tensors(folder).items()}


def _sources(folder: Path, config: QwenVLConfig, wanted: dict) -> dict[str, tuple[Row, list[StoredTensor]]]:
    """Path of each wanted parameter -> its row and the tensors that make it, all of which fit."""
    stored = _stored(folder, config)
    table = rows(config, transposed_experts=_transposed_experts(config, stored, folder))
    _check(table, wanted, stored, folder, tied=config.text.tied_head)
    return {row.path: (row, [stored[key] for key in row.keys]) for row in table}


def _check(table: list[Row], wanted: dict, stored: dict[str, StoredTensor], folder: Path, tied: bool) -> None:
    """Every tensor is there, none is left, all have the shapes that the config asks for."""
    keys = {key for row in table for key in row.keys}
    found = set(stored) - ({HEAD} if tied else set())
    for what, wrong in (("missing", keys - found), ("unexpected", found - keys)):
        if wrong:
            shown = ", ".join(sorted(wrong)[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise ModelError(f"{what} weights: {shown}", where=folder, fix=_MIXED)
    for row in table:
        shape = row.hf_shape(wanted[row.path].shape)
        for key in row.keys:
            if stored[key].shape != shape:
                what = f"{key} is {stored[key].shape}, config.json asks for {shape}"
                raise ModelError(what, where=stored[key].file, fix=_MIXED)
    if tied and HEAD in stored:
        _check_tied(stored, next(row.keys[0] for row in table if row.path == EMBEDDING))


def _check_tied(stored: dict[str, StoredTensor], embedding: str) -> None:
    """A head that is stored though it is the embedding has to be the embedding."""
    head, embed = stored[HEAD], stored[embedding]
    starts = range(0, embed.shape[0], 4096)
    rows = lambda tensor, start: tensor.read(start, min(start + 4096, embed.shape[0])).astype(np.float32)  # noqa: E731
    if head.shape != embed.shape or any((rows(head, start) != rows(embed, start)).any() for start in starts):
        what = f"config.json ties {HEAD} to {embedding}, but the two differ"
        raise ModelError(what, where=head.file, fix="Set tie_word_embeddings to false in config.json")


def _transposed_experts(config: QwenVLConfig, stored: dict[str, StoredTensor], where: object) -> bool:
    """Whether experts are stored as transformers 5 writes them; their shapes tell.

    Raises:
        ModelError: both layouts have the same shapes.
    """
    experts, width = config.text.experts, config.text.hidden_size
    if experts is None:
        return False
    if width in (experts.intermediate_size, 2 * experts.intermediate_size):
        what = f"hidden_size {width} does not tell the two layouts of expert weights apart"
        raise ModelError(
            what, where=where, fix="Use a checkpoint whose moe_intermediate_size is not a half or all of it"
        )
    shape = (experts.count, 2 * experts.intermediate_size, width)
    return any(key.endswith("experts.gate_up_proj") and tensor.shape == shape for key, tensor in stored.items())


def save_model(
    model: QwenVL, folder: str | Path, like: str | Path, *, dtype: str | None = None, max_shard_size: str | None = None
) -> None:
    """Writes an HF folder that transformers loads, its tensors named as in released files; weights there are replaced.

    In a job of several processes all call it: they gather the parameters, and the first one writes.

    Args:
        model: the model; its parameters are gathered to the host layer by layer.
        folder: where to write; created.
        like: the HF folder this model comes from, source of config, tokenizer and processor files, of the layout of
            expert weights, and of the distribution over files.
        dtype: dtype of the written tensors, by default the parameters' own; `like`: each as in that folder.
        max_shard_size: size at which a safetensors file is full, by default as in `like`, or 5GB.
    """
    save_parameters(parameter_paths(model), model.config, folder, like, dtype=dtype, max_shard_size=max_shard_size)


def save_parameters(
    parameters: Mapping[str, jax.Array | LazyParameter],
    config: QwenVLConfig,
    folder: str | Path,
    like: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | None = None,
) -> None:
    """`save_model` for a model given by the parameters under their paths, which may be lazy: one layer of one of them
    is in memory at a time."""
    folder, like = Path(folder), resolve_folder(like, weights=True)
    stored = _stored(like, config) if any(like.glob("*.safetensors")) else {}
    written = list(_written(parameters, config, stored, dtype, like))
    if jax.process_index() == 0:
        _copy_side_files(like, folder)
    write_files(written, folder, plan_files(written, stored, max_shard_size))
    if jax.process_index():
        return
    # Last: a folder with a config.json is whole.
    text, facts = (like / "config.json").read_text(encoding="utf-8"), read_json(like / "config.json")
    own = str(written[0][2])
    if dtype != "like" and (facts.get("dtype") or facts.get("torch_dtype")) != own:
        text = json.dumps(_with_dtype(facts, own), indent=2) + "\n"
    _write_text(folder / "config.json", text)


def _copy_side_files(like: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SIDE_FILES:
        if (like / name).exists() and not folder.samefile(like):
            shutil.copy(like / name, folder / name)


def _written(
    parameters: Mapping[str, jax.Array | LazyParameter],
    config: QwenVLConfig,
    stored: dict[str, StoredTensor],
    dtype: str | None,
    like: Path,
) -> Iterable[Written]:
    """Every HF tensor of the model, to be made when its turn comes."""
    for row in rows(config, transposed_experts=_transposed_experts(config, stored, like)):
        array = parameters[row.path]
        shape = row.hf_shape(array.shape)
        # A tied head that `like` has stored is the embedding once more.
        again = (HEAD,) if row.path == EMBEDDING and config.text.tied_head and HEAD in stored else ()
        for layer, key in enumerate((*row.keys, *again)):
            own = stored[key].dtype if dtype == "like" else jnp.dtype(dtype or array.dtype)
            make = lambda row=row, array=array, layer=layer: row.reversed(gather(array, layer if row.stacked else None))  # noqa: E731
            yield key, shape, np.dtype(own), make


def plan_files(
    written: list[Written], stored: dict[str, StoredTensor], max_shard_size: str | None
) -> dict[str, list[str]]:
    """File name -> its keys.

    Args:
        written: the tensors.
        stored: those of a folder whose distribution over files is kept if they are the same tensors.
        max_shard_size: size at which a file is full; overrides `stored`.
    """
    keys = [key for key, *_ in written]
    if max_shard_size is None and stored and all(key in stored for key in keys):
        by_file = lambda key: stored[key].file.name  # noqa: E731
        return {name: list(group) for name, group in itertools.groupby(sorted(keys, key=by_file), by_file)}
    sizes = {key: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for key, shape, dtype, _ in written}
    return split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size or "5GB",
    ).filename_to_tensors


def write_files(written: list[Written], folder: Path, plan: dict[str, list[str]]) -> None:
    """Writes the files of a plan, and their index if there are several, in place of the weights that lie there."""
    tensors = {tensor[0]: tensor for tensor in written}
    stale = _weight_files(folder) - set(plan) if jax.process_index() == 0 else set()
    for file, keys in plan.items():
        write_file(folder / file, [tensors[key] for key in keys])
    # Readers differ in which they prefer, an index or a single file: an old one would win over the new weights.
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    if list(plan) == ["model.safetensors"] or jax.process_index():
        return
    total = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for _, shape, dtype, _ in written)
    weight_map = {key: file for file, keys in plan.items() for key in keys}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _weight_files(folder: Path) -> set[str]:
    """Names of a folder's index, of the files that it names, and of those named as here."""
    named = (read_json(folder / INDEX) or {}).get("weight_map")
    found = {
        file.name for pattern in ("model.safetensors", "model-*-of-*.safetensors") for file in folder.glob(pattern)
    }
    return {INDEX} | found | ({Path(name).name for name in named.values()} if isinstance(named, dict) else set())


def write_tensors(tensors: dict[str, np.ndarray], folder: Path, max_shard_size: str = "5GB") -> None:
    """Writes `model*.safetensors` and, if there are several, their index."""
    written = [(key, array.shape, array.dtype, lambda array=array: array) for key, array in tensors.items()]
    write_files(written, folder, plan_files(written, {}, max_shard_size))


def _with_dtype(facts: dict, dtype: str) -> dict:
    """The config with its dtype, and those of the parts that state one, replaced."""
    parts = {key: value for key, value in facts.items() if isinstance(value, dict) and "dtype" in value}
    parts = {key: _with_dtype(value, dtype) for key, value in parts.items()}
    return {key: value for key, value in facts.items() if key != "torch_dtype"} | parts | {"dtype": dtype}


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
