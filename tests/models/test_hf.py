"""HF folders in and out: bit for bit, readable by transformers, and every fault named."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from videoauto_jax.errors import ModelError
from videoauto_jax.models import placing
from videoauto_jax.models.hf import load_model, save_model, write_tensors
from videoauto_jax.models.qwen_vl import parameter_paths


def tensors_of(folder):
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and found[key].tobytes() == tensor.tobytes(), key


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """Copies the checkpoint with its tensors changed by a function."""

    def make(change):
        folder = tmp_path / "broken"
        shutil.copytree(tiny_folder, folder)
        tensors = change(tensors_of(folder))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_then_export_keeps_every_bit(tied, dtype, tiny_folder, untied_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_folder if tied else untied_folder, source)
    tensors = {key: tensor.astype(dtype) for key, tensor in tensors_of(source).items()}
    assert dtype == "float32" or next(iter(tensors.values())).dtype == ml_dtypes.bfloat16
    write_tensors(tensors, source)
    save_model(load_model(source, dtype=dtype), tmp_path / "out", like=source)
    same_bits(tensors_of(tmp_path / "out"), tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_layers_of_several_dtypes(tiny_folder, tmp_path):
    source, names = shutil.copytree(tiny_folder, tmp_path / "source"), ("float16", "bfloat16", "float32")
    tensors = {key: tensor.astype(names[i % 3]) for i, (key, tensor) in enumerate(tensors_of(source).items())}
    write_tensors(tensors, source)
    save_model(load_model(source, dtype="float32"), tmp_path / "out", like=source, dtype="like")
    same_bits(tensors_of(tmp_path / "out"), tensors)


def test_several_shards(tiny_folder, tmp_path):
    model = load_model(tiny_folder, dtype="float32")
    save_model(model, tmp_path, like=tiny_folder, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    assert all(load_file(tmp_path / file).keys() >= {key} for key, file in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(tiny_folder).values())
    same_bits(tensors_of(tmp_path), tensors_of(tiny_folder))
    for (path, expected), found in zip(parameter_paths(model).items(), parameter_paths(load_model(tmp_path)).values()):
        np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16), err_msg=path)


@pytest.mark.parametrize("sizes", [("100KB", "5GB"), ("5GB", "100KB"), ("100KB", "200KB")])
def test_an_export_replaces_the_weights_that_lie_there(sizes, tiny_folder, tmp_path):
    model = load_model(tiny_folder, dtype="float32")
    (tmp_path / "adapter.safetensors.bak").touch()
    save_model(model, tmp_path, like=tiny_folder, max_shard_size=sizes[0])
    norm = model.text.norm.scale
    norm.set_value(norm[...] + 1)
    save_model(model, tmp_path, like=tiny_folder, max_shard_size=sizes[1])
    np.testing.assert_array_equal(load_model(tmp_path, dtype="float32").text.norm.scale[...], norm[...])
    index = tmp_path / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    assert {file.name for file in tmp_path.glob("*.safetensors")} == named
    assert (tmp_path / "adapter.safetensors.bak").exists()


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": ["model.safetensors"]}])
def test_an_index_without_files_is_named(index, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"no weight_map .*index\.json.*Download this file again"):
        load_model(folder)


def test_an_export_brings_tokenizer_and_configs(tiny_folder, tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "out", like=tiny_folder, dtype="bfloat16")
    names = {path.name for path in tiny_folder.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names >= {"tokenizer.json", "generation_config.json"}
    assert all(tensor.dtype == ml_dtypes.bfloat16 for tensor in tensors_of(tmp_path / "out").values())


def test_transformers_loads_an_export(untied_folder, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

    facts = json.loads((untied_folder / "config.json").read_text())
    like = tmp_path / "like"
    shutil.copytree(untied_folder, like)
    facts["text_config"]["dtype"] = facts["torch_dtype"] = "bfloat16"  # what the source says of itself no longer holds
    (like / "config.json").write_text(json.dumps(facts))
    ours = load_model(untied_folder, dtype="float32")
    save_model(ours, tmp_path / "out", like=like, max_shard_size="100KB")
    theirs, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.dtype == torch.float32 and AutoConfig.from_pretrained(tmp_path / "out").model_type == "qwen3_vl"
    same_bits({key: tensor.numpy() for key, tensor in theirs.state_dict().items()}, tensors_of(untied_folder))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("What")["input_ids"]


def test_weights_go_straight_into_their_shardings(tiny_folder, tiny_model):
    from videoauto_jax.sharding import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    arrays = parameter_paths(load_model(tiny_folder, mesh, dtype="bfloat16", param_dtype="float32"))
    for path, expected in parameter_paths(tiny_model).items():
        assert arrays[path].dtype == jnp.float32 and arrays[path].sharding.mesh == mesh
        np.testing.assert_array_equal(arrays[path], expected, err_msg=path)
    shard = arrays["text/layers/attention/q/kernel"].addressable_shards[0].data
    assert shard.shape == (3, 48 // 4, 4 // 2, 16)


def without(key):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.visual.merger.norm.bias"), "missing weights: model.visual.merger.norm.bias"),
        (lambda t: t | {"model.visual.extra": np.zeros(3)}, "unexpected weights: model.visual.extra"),
        (
            lambda t: t | {f"model.language_model.layers.{i}.mlp.up_proj.bias": np.zeros(80) for i in range(5)},
            r"unexpected weights: .*layers\.0.* and 2 more",
        ),
        (
            lambda t: t | {"model.language_model.layers.1.self_attn.k_proj.weight": np.zeros((31, 48))},
            r"layers\.1\.self_attn\.k_proj\.weight is \(31, 48\), config\.json asks for \(32, 48\)",
        ),
        (
            lambda t: t | {"model.language_model.embed_tokens.weight": np.zeros((383, 48))},
            r"embed_tokens\.weight is \(383, 48\), config\.json asks for \(384, 48\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(broken, change, message):
    folder = broken(change)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(folder)
    assert str(folder) in str(raised.value)


EMBED = "model.language_model.embed_tokens.weight"


def test_a_tied_head_may_be_stored(broken, tmp_path):
    folder = broken(lambda t: t | {"lm_head.weight": t[EMBED]})
    model = load_model(folder, dtype="float32")
    assert "head/kernel" not in parameter_paths(model)
    embedding = model.text.embed.embedding
    embedding.set_value(embedding[...] + 1)
    save_model(model, tmp_path / "out", like=folder)
    found, before = tensors_of(tmp_path / "out"), tensors_of(folder)
    assert found.keys() == before.keys()
    for key in ("lm_head.weight", EMBED):
        np.testing.assert_array_equal(found[key], before[EMBED] + 1)


def test_a_head_that_the_config_contradicts_is_refused(broken, untied_folder, tmp_path):
    folder = broken(lambda t: t | {"lm_head.weight": np.nextafter(t[EMBED], np.float32(9))})
    with pytest.raises(
        ModelError, match=r"ties lm_head\.weight to .*embed_tokens.*differ .*Set tie_word_embeddings to f"
    ):
        load_model(folder)
    tensors = tensors_of(untied_folder)
    shutil.copytree(untied_folder, tmp_path / "headless")
    save_file(without("lm_head.weight")(tensors), tmp_path / "headless" / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing weights: lm_head\.weight"):
        load_model(tmp_path / "headless")


def test_a_tensor_in_several_files(tiny_folder, tiny_model, tmp_path):
    """The index decides; without one nothing does, unless there is a file that is the whole model."""
    folder, key = tmp_path / "copy", "model.language_model.norm.weight"
    save_model(tiny_model, folder, like=tiny_folder, max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    owner = json.loads(index.read_text())["weight_map"][key]
    for other in {file.name for file in folder.glob("*.safetensors")} - {owner}:
        save_file(load_file(folder / other) | {key: np.zeros(48, np.float32)}, folder / other)
    np.testing.assert_array_equal(load_model(folder, dtype="float32").text.norm.scale[...], tiny_model.text.norm.scale)
    index.unlink()
    with pytest.raises(ModelError, match=rf"{key} is in model-00001.* and in model-00002.*Remove the file"):
        load_model(folder)
    shutil.copy(tiny_folder / "model.safetensors", folder)
    assert load_model(folder, dtype="float32").text.norm.scale[...].all()


def test_a_truncated_file_is_named(broken):
    folder = broken(lambda tensors: tensors)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="unreadable weights") as raised:
        load_model(folder)
    assert str(file) in str(raised.value)


def test_files_that_are_cut_or_missing_are_named(tiny_folder, tmp_path):
    model = load_model(tiny_folder, dtype="float32")
    save_model(model, tmp_path, like=tiny_folder, max_shard_size="100KB")
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    data = second.read_bytes()
    for kept in (4, 100, len(data) - 1):
        second.write_bytes(data[:kept])
        with pytest.raises(ModelError, match=f"truncated .*{second.name}.*Download this file again"):
            load_model(tmp_path)
    second.write_bytes(data[:8] + b"?" + data[9:])
    with pytest.raises(ModelError, match=f"unreadable weights.*{second.name}"):
        load_model(tmp_path)
    second.unlink()
    with pytest.raises(ModelError, match=f"names a file that is missing .*{second.name}"):
        load_model(tmp_path)


def transposed(tensors):
    """The experts as transformers 5 writes them."""
    return {key: tensor.swapaxes(1, 2).copy() if ".experts." in key else tensor for key, tensor in tensors.items()}


def test_both_layouts_of_experts(checkpoint, tmp_path):
    hub = checkpoint("qwen3_vl_moe")
    shutil.copytree(hub, tmp_path / "own")
    tensors = transposed(tensors_of(hub))
    save_file(tensors, tmp_path / "own" / "model.safetensors")
    models = [load_model(folder, dtype="float32") for folder in (hub, tmp_path / "own")]
    for (path, expected), found in zip(*(parameter_paths(model).items() for model in models)):
        np.testing.assert_array_equal(found[1], expected, err_msg=path)
    save_model(models[0], tmp_path / "out", like=tmp_path / "own")
    same_bits(tensors_of(tmp_path / "out"), tensors)
    (tmp_path / "own" / "model.safetensors").unlink()  # nothing left to be like: as on the hub
    save_model(models[1], tmp_path / "hub", like=tmp_path / "own")
    same_bits(tensors_of(tmp_path / "hub"), tensors_of(hub))


def test_layouts_of_experts_that_cannot_be_told_apart_are_refused(write_tiny):
    with pytest.raises(ModelError, match="hidden_size 48 does not tell the two layouts"):
        load_model(write_tiny("qwen3_vl_moe", text={"moe_intermediate_size": 24}))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_pieces_of_any_size_make_the_same_parameters(family, checkpoint, monkeypatch):
    from videoauto_jax.sharding import MeshConfig, make_mesh

    folder, mesh = checkpoint(family), make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))
    expected = parameter_paths(load_model(folder, dtype="float32"))
    monkeypatch.setattr(placing, "PIECE_BYTES", 1000)
    for where in (None, mesh):
        for path, found in parameter_paths(load_model(folder, where, dtype="float32")).items():
            np.testing.assert_array_equal(found, expected[path], err_msg=path)


def test_what_is_not_a_model_folder_is_named(tiny_folder, tmp_path):
    for nowhere in (tmp_path / "nowhere", tiny_folder / "config.json"):
        with pytest.raises(ModelError, match="no such checkpoint folder"):
            load_model(nowhere)
    with pytest.raises(ModelError, match="not a model folder"):
        load_model(tmp_path)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(ModelError, match="no safetensors files"):
        load_model(tmp_path)
    for text, message in (("{", "broken JSON"), ("[]", "not a JSON object"), ("{}", "architecture None")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path)


def test_a_second_model_of_the_same_config_compiles_nothing(tiny_folder, tiny_model):
    forward = jax.jit(lambda model, x: model.logits(x))
    x = np.ones((1, 2, 48), np.float32)
    forward(tiny_model, x)
    forward(load_model(tiny_folder, dtype="float32"), x)
    assert forward._cache_size() == 1
