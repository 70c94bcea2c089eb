"""Every parameter has one place on any mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import read_config
from videoauto_jax.models.hf import abstract_model
from videoauto_jax.models.partition import LAYOUTS, constrain, logical_axes, parameter_spec
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.sharding import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def shapes(untied_folder):
    return shapes_of(untied_folder)


def shapes_of(folder):
    model = abstract_model(read_config(folder), "float32", "float32")
    return {path: leaf.shape for path, leaf in parameter_paths(model).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}], ids=str)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_every_parameter_has_a_place(family, checkpoint, mesh, layout):
    mesh, shapes = make_mesh(MeshConfig(**mesh)), shapes_of(checkpoint(family))
    for path, shape in shapes.items():
        axes = logical_axes(path)
        assert not axes or len(axes) == len(shape), path
        spec = parameter_spec(path, shape, mesh, layout)
        used = [axis for axis in spec if axis]
        assert len(used) == len(set(used)), path
        # A matrix that stays whole would be kept by every device.
        kept_whole = len(shape) < 2 or not axes or path.endswith("bias")
        assert kept_whole or used or (layout, mesh.shape["tensor"]) != ("train", 1), path
        jax.sharding.NamedSharding(mesh, spec).shard_shape(shape)


def test_big_matrices_are_split_over_both_axes(shapes):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    whole = [path for path, shape in shapes.items() if np.prod(shape) > 1000 and len(shape) > 1
             and len([axis for axis in parameter_spec(path, shape, mesh) if axis]) < 2]  # fmt: skip
    assert whole == ["vision/patch_embed/kernel", "vision/position_embed/embedding"]  # no axis for `tensor`


def test_specs_by_hand(shapes):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    expected = {
        "text/embed/embedding": P("tensor", "fsdp"),
        "text/layers/attention/q/kernel": P(None, "fsdp", "tensor"),
        "text/layers/attention/o/kernel": P(None, "tensor", None, "fsdp"),
        "text/layers/mlp/down/kernel": P(None, "tensor", "fsdp"),
        "text/layers/attention/q_norm/scale": P(),
        "head/kernel": P("fsdp", "tensor"),
        "vision/blocks/attention/qkv/bias": P(None, None, "tensor"),
        "vision/blocks/attention/proj/bias": P(),
    }
    for path, spec in expected.items():
        assert parameter_spec(path, shapes[path], mesh) == spec, path
    q = "text/layers/attention/q/kernel"
    assert parameter_spec(q, shapes[q], mesh, "rollout") == P(None, None, "tensor")


def test_experts_have_an_axis_of_their_own(checkpoint):
    shapes, mesh = shapes_of(checkpoint("qwen3_vl_moe")), make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))
    expected = {
        "text/layers/mlp/experts/gate_up/kernel": P(None, "expert", None, "fsdp", "tensor"),
        "text/layers/mlp/experts/down/kernel": P(None, "expert", "tensor", "fsdp"),
        "text/layers/mlp/router/kernel": P(None, "fsdp"),
    }
    for path, spec in expected.items():
        assert parameter_spec(path, shapes[path], mesh) == spec, path


def test_what_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    assert parameter_spec("text/layers/attention/k/kernel", (3, 50, 3, 16), mesh) == P()


def test_unknown_parameters_and_clashing_rules_are_named(monkeypatch):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with pytest.raises(ModelError, match="no sharding rule for parameter text/layers/experts/kernel"):
        parameter_spec("text/layers/experts/kernel", (3, 4, 4), mesh)
    monkeypatch.setitem(LAYOUTS, "train", {"embed": "fsdp", "mlp": "fsdp"})
    with pytest.raises(ModelError, match="twice for text/layers/mlp/up/kernel"):
        parameter_spec("text/layers/mlp/up/kernel", (3, 48, 80), mesh)


def test_activations_are_kept_on_the_batch_axes_of_the_mesh_in_use():
    x = np.zeros((8, 4), np.float32)
    assert jax.jit(constrain)(x).sharding.num_devices == 1
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        assert jax.jit(constrain)(x).sharding.shard_shape(x.shape) == (2, 4)
        assert jax.jit(constrain)(x[:3]).shape == (3, 4)
