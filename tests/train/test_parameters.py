"""Parameter groups and weight decay by path."""

import jax.numpy as jnp
import jax.tree_util as tree
import pytest
from flax import nnx

from videoauto_jax.errors import ModelError
from videoauto_jax.train.parameters import TrainableConfig, decays, group, matrix_axes, path_name

GROUPED = {
    "vision/patch_embed/kernel": "vision",
    "vision/position_embed": "vision",
    "vision/blocks/attn/qkv/bias": "vision",
    "merger/norm/scale": "merger",
    "deepstack_mergers/fc1/kernel": "merger",
    "text/embed/embedding": "embed",
    "text/embed": "embed",
    "text/layers/attn/q/kernel": "text",
    "text/norm/scale": "text",
    "head/kernel": "head",
}


@pytest.mark.parametrize(("path", "owner"), GROUPED.items())
def test_group(path, owner):
    assert group(path) == group(tuple(path.split("/"))) == owner


def test_defaults_train_all_but_the_vision_tower():
    trained = {group(path) for path in GROUPED if TrainableConfig().trainable(path)}
    assert trained == {"merger", "embed", "text", "head"}


@pytest.mark.parametrize("switch", ["vision", "merger", "text", "embed", "head"])
def test_every_group_has_its_own_switch(switch):
    only = TrainableConfig(**{name: name == switch for name in ("vision", "merger", "text", "embed", "head")})
    assert {group(path) for path in GROUPED if only.trainable(path)} == {switch}


def test_unknown_parameter_is_named():
    with pytest.raises(ModelError, match="audio/kernel.*deepstack_mergers/"):
        TrainableConfig().trainable("audio/kernel")


@pytest.mark.parametrize(
    "path",
    [
        "text/norm/scale",
        "text/layers/input_norm/scale",
        "text/layers/post_attention_layernorm/weight",
        "text/layers/attn/q_norm/scale",
        "text/layers/attn/q/bias",
        "vision/blocks/norm1/scale",
        "vision/blocks/qkv_bias",
        "merger/ln_q/scale",  # decayed upstream, whose patterns miss the name
        "deepstack_mergers/norm/bias",
    ],
)
def test_norms_and_biases_do_not_decay(path):
    assert not decays(path)


@pytest.mark.parametrize(
    "path",
    [
        "text/embed/embedding",
        "head/kernel",
        "text/layers/mlp/down/kernel",
        "merger/fc1/kernel",
        "vision/position_embed",
        "text/layers/mlp/biased/kernel",
        "text/lnk/kernel",
    ],
)
def test_everything_else_decays(path):
    assert decays(path)


def test_every_expert_is_a_matrix_of_its_own():
    up, down = (
        matrix_axes(f"text/layers/mlp/experts/{name}/kernel", rank) for name, rank in (("gate_up", 5), ("down", 4))
    )
    assert (up.reduction_axis, up.output_axis) == ((3,), (4,)) and (down.reduction_axis, down.output_axis) == (
        (2,),
        (3,),
    )
    router = matrix_axes("text/layers/mlp/router/kernel", 3)
    assert (router.reduction_axis, router.output_axis) == ((1,), (2,))


def test_path_names_of_every_kind():
    parameters = nnx.State({"text": {"layers": {0: {"bias": nnx.Param(jnp.zeros(1))}}}})
    (path, _), *_ = tree.tree_flatten_with_path(parameters)[0]
    assert path_name(path) == path_name(("text", "layers", 0, "bias")) == path_name("text/layers/0/bias/")
    assert path_name(path) == "text/layers/0/bias"


def test_config_is_an_nnx_filter():
    model = nnx.Dict(vision=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), head=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    _, trained, frozen = nnx.split(model, TrainableConfig(), ...)
    assert (list(trained), list(frozen)) == (["head"], ["vision"])
