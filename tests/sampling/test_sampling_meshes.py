"""The same tokens on eight devices as on one, whichever slots prompts are in; and no program compiled twice for it."""

import jax
import numpy as np
import pytest

from videoauto_jax.kernels.quantized import quantize
from videoauto_jax.models.hf import load_model
from videoauto_jax.sampling import cache, engine
from videoauto_jax.sampling.placing import keep
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.sharding import MeshConfig, make_mesh

LAYOUTS = [{"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 2, "context": 2}]
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


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_eight_devices_write_what_one_writes(layout, alone, tiny_folder, tiny_processor):
    mesh = make_mesh(MeshConfig(**layout))
    sampler = Sampler(load_model(tiny_folder, mesh, dtype="float32"), tiny_processor, CONFIG)
    found = sampler.rollout(chats(), branches=2)  # four prompts at once, then two more
    for mine, expected in zip(sum(found, []), sum(alone, [])):
        assert mine.finish_reason in ("length", "stop")
        np.testing.assert_array_equal(mine.token_ids, expected.token_ids)
        np.testing.assert_allclose(mine.logprobs, expected.logprobs, atol=1e-4)
    sampler.rollout(chats(), branches=2)
    before = [program._cache_size() for program in PROGRAMS]
    sampler.rollout(chats()[::-1], branches=2)
    assert before == [program._cache_size() for program in PROGRAMS]
    k = sampler._idle[1]._state.prompts.k
    parts = [mesh.shape[axis] for axis in ("data", "fsdp", "expert")]
    shape = k.shape[1] // np.prod(parts), k.shape[2] // mesh.shape["context"], k.shape[3] // mesh.shape["tensor"]
    assert k.sharding.shard_shape(k.shape)[1:4] == shape
