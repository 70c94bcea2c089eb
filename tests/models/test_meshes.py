"""The same logits and gradients on eight devices as on one, for every family and layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.data.processor import load_processor
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.sharding import MeshConfig, make_mesh, place_inputs, place_vision

LAYOUTS = [{"fsdp": 8}, {"fsdp": 1, "tensor": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 1, "tensor": 2, "context": 4}]
EXPERT = [{"fsdp": 1, "expert": 8}, {"fsdp": 1, "expert": 4, "tensor": 2}, {"fsdp": 2, "expert": 2, "tensor": 2}]
EXPERT += [{"fsdp": 1, "expert": 2, "tensor": 2, "context": 2}]
CASES = [(family, mesh) for family in ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe") for mesh in LAYOUTS]
CASES += [("qwen3_vl_moe", mesh) for mesh in EXPERT]

forward = jax.jit(lambda model, inputs: model(inputs))


@jax.jit
def gradients(model, inputs):
    return jax.grad(lambda model: jnp.sum(jnp.sin(model.hidden(inputs))))(model)


def prompts(count):
    rng, chats = np.random.default_rng(0), []
    for n in range(count):
        frames = list(rng.integers(0, 256, (4, 70, 90, 3), dtype=np.uint8))
        video = {"type": "video", "video": frames, "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 8192}
        chats.append([{"role": "user", "content": [video] * (n % 2) + [{"type": "text", "text": f"Question {n}"}]}])
    return chats


@pytest.fixture(scope="module")
def alone(checkpoint):
    """`alone(family)`: folder, inputs, logits and gradients on one device."""
    made = {}

    def make(family):
        if family not in made:
            folder = checkpoint(family, tied=family == "qwen3_vl")
            model, inputs = load_model(folder, dtype="float32"), load_processor(folder)(prompts(8))
            made[family] = folder, inputs, forward(model, inputs), parameter_paths(gradients(model, inputs))
        return made[family]

    return make


@pytest.mark.parametrize(("family", "mesh"), CASES, ids=str)
def test_eight_devices_give_the_logits_of_one(family, mesh, alone):
    folder, inputs, expected, _ = alone(family)
    mesh = make_mesh(MeshConfig(**mesh))
    with jax.set_mesh(mesh):
        model = load_model(folder, mesh, dtype="float32")
        found = forward(model, place_inputs(inputs, mesh))
        used = inputs.segment_ids > 0
        np.testing.assert_allclose(np.asarray(found)[used], np.asarray(expected)[used], atol=2e-5)
        few = load_processor(folder)(prompts(3))  # rows that no batch axis divides
        used = few.segment_ids > 0
        np.testing.assert_allclose(
            np.asarray(forward(model, few))[used], np.asarray(expected)[:3, : used.shape[1]][used], atol=2e-5
        )


@pytest.mark.parametrize("mesh", EXPERT[1:], ids=str)
def test_gradients_under_expert_sharding(mesh, alone):
    folder, inputs, _, expected = alone("qwen3_vl_moe")
    mesh = make_mesh(MeshConfig(**mesh))
    with jax.set_mesh(mesh):
        model = load_model(folder, mesh, dtype="float32")
        found = parameter_paths(gradients(model, place_inputs(inputs, mesh)))
    for path, want in expected.items():
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(found[path], want, atol=1e-4 * scale + 1e-6, err_msg=path)
    kernel = parameter_paths(model)["text/layers/mlp/experts/gate_up/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == 8 // mesh.shape["expert"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_rows_and_patches_are_split_over_context(family, alone):
    """What a device computes where nothing else is split, by XLA's own count."""
    folder, inputs, _, _ = alone(family)
    tokens = dataclasses.replace(inputs, vision=None)
    work = {"rows": {}, "patches": {}}
    for context in (1, 4):
        mesh = make_mesh(MeshConfig(fsdp=1, context=context), jax.devices()[:context])
        with jax.set_mesh(mesh):
            model = load_model(folder, mesh, dtype="float32")
            rows = jax.jit(lambda model, inputs: model.hidden(inputs)).lower(model, place_inputs(tokens, mesh))
            patches = jax.jit(lambda model, vision: model.encode_vision(vision))
            patches = patches.lower(model, place_vision(inputs.vision, mesh))
        for name, program in (("rows", rows), ("patches", patches)):
            work[name][context] = program.compile().cost_analysis()["flops"]
    assert work["rows"][4] < 0.3 * work["rows"][1]
    assert work["patches"][4] < 0.35 * work["patches"][1]  # pieces overlap


def test_an_expert_nobody_asks_for_is_not_computed(alone, checkpoint):
    folder, inputs, expected, _ = alone("qwen3_vl_moe")
    model = load_model(folder, dtype="float32")
    mlp = model.text.layers.mlp
    # Logits z, -z, 0.9 z and -0.9 z of experts 0, 1, 5 and 6: two of them are always above the 0 of expert 3.
    mlp.router.kernel[...] = mlp.router.kernel[...].at[..., 3].set(0).at[..., :2].multiply(50)
    mlp.router.kernel[...] = mlp.router.kernel[...].at[..., 1].set(-mlp.router.kernel[..., 0])
    mlp.router.kernel[...] = mlp.router.kernel[...].at[..., 5].set(mlp.router.kernel[..., 0] * 0.9)
    mlp.router.kernel[...] = mlp.router.kernel[...].at[..., 6].set(mlp.router.kernel[..., 1] * 0.9)
    before = forward(model, inputs)
    kernel = mlp.experts["gate_up"].kernel
    kernel[...] = kernel[...].at[:, 3].set(jnp.nan)
    np.testing.assert_array_equal(forward(model, inputs), before)
