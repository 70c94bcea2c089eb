"""Adapters: they change nothing at first, train alone, and leave as a merged model or as peft's folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from videoauto_jax.errors import ConfigError, ModelError
from videoauto_jax.models.hf import lazy_parameters, load_model, save_model, write_tensors
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.train.lora import (
    LoraConfig,
    attach_adapters,
    is_adapter,
    merge_adapters,
    merged_parameters,
    save_adapters,
)

CONFIG = LoraConfig(rank=4, alpha=12.0)
TOKENS = np.random.default_rng(0).integers(5, 250, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def inputs():
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), (3, 2, 9))
    return ModelInputs(TOKENS, positions, np.ones_like(TOKENS), np.full_like(TOKENS, -1), None)


def adapted(folder, config=CONFIG, seed=0):
    """A model whose adapters have learnt something: `b` is random too."""
    model = load_model(folder, dtype="float32")
    attach_adapters(model, config, seed)
    graph, adapters, rest = nnx.split(model, is_adapter, ...)
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), adapters)
    return nnx.merge(graph, adapters, rest)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_fresh_adapters_change_nothing_and_merged_ones_compute_the_same(family, checkpoint, inputs):
    folder = checkpoint(family)
    base = np.asarray(load_model(folder, dtype="float32")(inputs))
    fresh = load_model(folder, dtype="float32")
    attach_adapters(fresh, CONFIG, seed=0)
    np.testing.assert_array_equal(fresh(inputs), base)
    model = adapted(folder)
    logits = np.asarray(model(inputs))
    assert np.abs(logits - base).max() > 0.1
    merge_adapters(model, CONFIG)
    np.testing.assert_allclose(model(inputs), logits, atol=2e-4)
    assert not any("adapter" in path for path in parameter_paths(model))


def test_only_adapters_get_gradients(tiny_folder, inputs):
    graph, adapters, rest = nnx.split(adapted(tiny_folder), is_adapter, ...)
    grads = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state, rest)(inputs)[..., 7])))(adapters)
    paths = parameter_paths(grads)
    assert len(paths) == 2 * len(CONFIG.targets) and all(np.abs(grad).max() > 0 for grad in paths.values())
    layers = load_model(tiny_folder, dtype="float32").config.text.num_layers
    assert all(grad.shape[0] == layers and 4 in grad.shape for grad in paths.values())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_peft_computes_the_same_logits(family, checkpoint, inputs, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import transformers

    folder, model = checkpoint(family), adapted(checkpoint(family))
    save_adapters(model, CONFIG, tmp_path / "adapter", base=str(folder))
    facts = json.loads((folder / "config.json").read_text())
    theirs = getattr(transformers, facts["architectures"][0]).from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    attached = [name for name, _ in theirs.named_parameters() if "lora_" in name]
    assert len(attached) == len(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(model(inputs), logits, atol=2e-4)
    merge_adapters(model, CONFIG)
    save_model(model, tmp_path / "merged", like=folder)
    merged, unloaded = load_model(tmp_path / "merged", dtype="float32"), theirs.merge_and_unload().eval()
    with torch.no_grad():
        logits = unloaded(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(merged(inputs), logits, atol=2e-4)


def test_adapters_merge_layer_by_layer(untied_folder, tmp_path):
    model, folder = adapted(untied_folder), tmp_path / "base"
    shutil.copytree(untied_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    write_tensors({key: tensor.astype(ml_dtypes.bfloat16) for key, tensor in tensors.items()}, folder)
    lazy = merged_parameters(model, CONFIG, lazy_parameters(folder))
    shapes = nnx.split(model, is_adapter, ...)
    model = nnx.merge(*shapes[:2], jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), shapes[2]))
    merge_adapters(model, CONFIG)
    expected = parameter_paths(model)
    assert lazy.keys() == expected.keys()
    for path, array in expected.items():
        layers = range(len(array)) if path.startswith(("text/layers", "vision/blocks", "deepstack")) else [None]
        found = np.asarray([lazy[path].read(layer) for layer in layers]).reshape(array.shape)
        np.testing.assert_allclose(found.astype(np.float32), array, atol=1e-6, err_msg=path)


def test_bad_choices_are_named(checkpoint):
    for changes in ({"rank": 0}, {"alpha": 0.0}, {"targets": ()}):
        with pytest.raises(ConfigError, match="lora"):
            LoraConfig(**changes)
    with pytest.raises(ModelError, match="gate of a mixture of experts"):
        attach_adapters(load_model(checkpoint("qwen3_vl_moe"), dtype="float32"), LoraConfig(targets=("gate",)), 0)
