"""The same tokens on eight devices as on one, whichever slots prompts are in; and no program compiled twice for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.kernels.quantized import quantize
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.sampling import cache, engine
from videoauto_jax.sampling.placing import keep, rollout_weights
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig, settings
from videoauto_jax.sampling.table import Writing
from videoauto_jax.sharding import MeshConfig, make_mesh

LAYOUTS = [
    ({"fsdp": 4, "tensor": 2}, {"layout": "train"}),
    ({"fsdp": 2, "tensor": 2, "context": 2}, {}),
    ({"fsdp": 1, "tensor": 2, "context": 4}, {"prefill_tokens": 24}),
]
PROGRAMS = (cache.prefill, engine._admit_whole, engine._admit_some, engine.decode)


def chats():
    rng, found = np.random.default_rng(0), []
    for n in range(6):
        frames = list(rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
        video = {"type": "video", "video": frames, "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
        found.append([{"role": "user", "content": [video] * (n % 2) + [{"type": "text", "text": f"Question {n}"}]}])
    return found


CONFIG = SamplingConfig(mode="second", max_new_tokens=10, temperature=1.0, prompts=4, prompt_lengths=(64,))


@pytest.fixture(scope="module")
def alone(tiny_model, tiny_processor):
    return Sampler(tiny_model, tiny_processor, CONFIG).rollout(chats(), branches=2)


def test_scales_lie_beside_their_values():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, context=2))
    caches = [quantize(np.ones(shape, np.float32), "int8") for shape in ((3, 4, 6, 2, 8), (3, 4, 5, 6, 2, 8))]
    with jax.set_mesh(mesh):
        prompt, own = jax.jit(keep)(caches)
    for placed, parts in ((prompt, (3, 2, 3, 1)), (own, (3, 2, 5, 6, 1))):
        assert placed.scale.sharding.shard_shape(placed.scale.shape) == parts
        assert placed.values.sharding.shard_shape(placed.values.shape) == (*parts, 8)


@pytest.mark.parametrize(("axes", "options"), LAYOUTS, ids=str)
def test_eight_devices_write_what_one_writes(axes, options, alone, tiny_folder, tiny_processor):
    mesh, config = make_mesh(MeshConfig(**axes)), dataclasses.replace(CONFIG, **options)
    sampler = Sampler(load_model(tiny_folder, mesh, dtype="float32"), tiny_processor, config)
    assert_same(sampler.rollout(chats(), branches=2), alone)  # four prompts at once, then two more
    sampler.rollout(chats(), branches=2)
    before = [program._cache_size() for program in PROGRAMS]
    sampler.rollout(chats()[::-1], branches=2)
    assert before == [program._cache_size() for program in PROGRAMS]
    k = sampler._idle[1]._state.prompts.k
    parts = [mesh.shape[axis] for axis in ("data", "fsdp", "expert")]
    shape = k.shape[1] // np.prod(parts), k.shape[2] // mesh.shape["context"], k.shape[3] // mesh.shape["tensor"]
    assert k.sharding.shard_shape(k.shape)[1:4] == shape


@pytest.mark.parametrize("before", [False, True])
def test_prefill_is_split_over_context(before, tiny_folder, tiny_processor):
    """What a device computes of a piece, by XLA's own count, and what it finds out."""
    ids, zeros = np.tile(np.arange(64, dtype=np.int32) + 1, (2, 1)), np.zeros(2, np.int32)
    piece = ModelInputs(ids, np.stack([ids] * 3), np.ones_like(ids), np.full_like(ids, -1), None)
    work, found = {}, {}
    for context in (1, 4):
        mesh = make_mesh(MeshConfig(fsdp=1, context=context), jax.devices()[:context])
        with jax.set_mesh(mesh):
            model = load_model(tiny_folder, mesh, dtype="float32")
            earlier, _ = cache.prefill(model, None, piece, zeros, zeros + 64, capacity=128)
            arguments = (earlier, piece, zeros + 64) if before else (None, piece, zeros)
            program = cache.prefill.lower(model, *arguments, zeros + 128, capacity=128).compile()
            found[context] = program(model, *arguments, zeros + 128)
        work[context] = program.cost_analysis()["flops"]
    assert work[4] < 0.35 * work[1]
    jax.tree.map(lambda one, four: np.testing.assert_allclose(one, four, atol=1e-5), found[1], found[4])


@pytest.mark.parametrize("layout", ["rollout", "train"])
def test_in_the_rollout_layout_no_step_gathers_anything(layout, alone, tiny_folder, tiny_processor):
    model = load_model(tiny_folder, make_mesh(MeshConfig(fsdp=8)), dtype="float32")
    config = dataclasses.replace(CONFIG, prompts=8, layout=layout)
    sampler = Sampler(model, tiny_processor, config)
    assert_same(sampler.rollout(chats(), branches=2), alone)
    writing = Writing(
        rollout_weights(model) if layout == "rollout" else model, sampler.automaton, settings(config, {1})
    )
    arguments = sampler._idle[1]._state, writing.automaton, writing.settings, jnp.int32(4), jnp.int32(0)
    with writing.in_use():
        program = engine.decode.lower(writing.model, *arguments, reach=16).compile().as_text()
    assert (" all-gather(" in program) == (layout == "train")


def test_slots_and_long_prompts_are_split_over_the_devices(alone, tiny_folder, tiny_processor):
    """Three slots are eight; prompts that go through the model in pieces do so side by side, each to its own end."""
    model, most = load_model(tiny_folder, make_mesh(MeshConfig(fsdp=8)), dtype="float32"), 24
    config = dataclasses.replace(CONFIG, prompts=3, prefill_tokens=most)
    sampler = Sampler(model, tiny_processor, config)
    lengths = [len(tiny_processor.encode(chat).token_ids) for chat in chats()]
    assert len({-(-length // most) for length in lengths}) > 1
    assert_same(sampler.rollout(chats(), branches=2), alone)
    branches = sampler._idle[1]._state.branches.tokens
    assert branches.shape[0] == 8 and branches.sharding.shard_shape(branches.shape)[0] == 1


def test_weights_of_the_rollout_layout(tiny_folder, tiny_model):
    """Whole or split by heads and width, rounded as the layers round them; what they come from stays as it is."""
    model = load_model(tiny_folder, make_mesh(MeshConfig(fsdp=4, tensor=2)), dtype="bfloat16", param_dtype="float32")
    expected = parameter_paths(load_model(tiny_folder, dtype="bfloat16"))
    before, after = parameter_paths(model), parameter_paths(rollout_weights(model))
    assert before.keys() == after.keys()
    for name, array in after.items():
        if name.startswith("text/"):
            assert "fsdp" not in jax.tree.leaves(tuple(array.sharding.spec))
            assert array.dtype == (jnp.float32 if name.endswith("scale") else jnp.bfloat16)
            np.testing.assert_array_equal(array.astype(jnp.bfloat16), expected[name])
        else:
            assert array is before[name]
        assert before[name].dtype == jnp.float32
    assert rollout_weights(tiny_model) is tiny_model


def assert_same(found, expected):
    for mine, other in zip(sum(found, []), sum(expected, []), strict=True):
        assert mine.finish_reason in ("length", "stop")
        np.testing.assert_array_equal(mine.token_ids, other.token_ids)
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-4)
