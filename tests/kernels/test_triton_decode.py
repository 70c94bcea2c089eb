"""The decoding kernels in Triton's interpreter, against the reference: torch only carries their arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.kernels import composed
from videoauto_jax.kernels.mask import shared
from videoauto_jax.kernels.quantized import quantize

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
triton_decode = pytest.importorskip("videoauto_jax.kernels.triton_decode")


@pytest.fixture(scope="module")
def kernels():
    """The module, with splits that short rows have several of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_decode, "LEAST_SPLIT", 64)
        patch.setattr(triton_decode, "_call", call)
        yield triton_decode


def call(kernel, operands, out, launch, **options):
    """What `jax_triton.triton_call` does, with poisoned outputs."""
    grid, constants = launch
    tensors = [tensor(np.array(x)) for x in operands]
    results = [torch.full(x.shape, float("nan"), dtype=getattr(torch, x.dtype.name)) for x in out]
    kernel[grid](*tensors, *results, **constants)
    return [jnp.asarray(x.numpy()) for x in results]


def tensor(x):
    """A torch tensor; NumPy's 8-bit floats go through their bits."""
    if x.dtype.name == "float8_e4m3fn":
        return torch.from_numpy(x.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(x)


def case(branches, heads, kv_heads, prompt, slots, size, rows=1, dtype="float32"):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    q, caches = normal(rows, branches, heads, size), [normal(2, rows, prompt, kv_heads, size) for _ in "kv"]
    own = [normal(2, rows, branches, slots, kv_heads, size) for _ in "kv"]
    lengths = jnp.asarray(rng.integers(0, slots + 1, (rows, branches)), jnp.int32)
    there = np.arange(prompt)[None] < rng.integers(1, prompt + 1, (rows, 1))
    there[:, :3] = False  # a prompt may start anywhere
    return q, *caches, shared(jnp.ones((rows, branches), bool), jnp.asarray(there)), *own, lengths, 1  # of two layers


SHAPES = {
    "7b": {"branches": 16, "heads": 28, "kv_heads": 4, "prompt": 150, "slots": 70, "size": 128},
    "8b": {"branches": 16, "heads": 32, "kv_heads": 8, "prompt": 70, "slots": 5, "size": 128},
    "rows": {"branches": 3, "heads": 4, "kv_heads": 2, "prompt": 200, "slots": 33, "size": 80, "rows": 2},
    "no own keys": {"branches": 2, "heads": 4, "kv_heads": 1, "prompt": 65, "slots": 0, "size": 16},
    "one branch": {"branches": 1, "heads": 2, "kv_heads": 2, "prompt": 64, "slots": 1, "size": 64},
    "many rows": {"branches": 40, "heads": 8, "kv_heads": 2, "prompt": 40, "slots": 3, "size": 16},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decoding_equals_the_composition(kernels, shape):
    arguments = case(**shape)
    for got, expected in zip(kernels.decode(*arguments), composed.decode(*arguments)):
        np.testing.assert_allclose(got, expected, atol=4e-6)


def test_no_program_is_started_beyond_reach(kernels):
    *arguments, lengths, layer = case(**SHAPES["7b"] | {"branches": 2})
    arguments += [jnp.minimum(lengths, 20), layer]
    for got, expected in zip(kernels.decode(*arguments, reach=20), composed.decode(*arguments)):
        np.testing.assert_allclose(got, expected, atol=4e-6)
    q, k, _, _, own, *_ = arguments
    assert [kernels.plan(q, k, own, reach).own_splits for reach in (20, 70, 900, None)] == [1, 2, 2, 2]


def test_half_precision(kernels):
    arguments = case(**SHAPES["rows"], dtype="float16")
    wide = [x.astype(jnp.float32) if getattr(x, "dtype", None) == jnp.float16 else x for x in arguments]
    got, expected = kernels.decode(*arguments)[0], composed.decode(*wide)[0]
    assert got.dtype == jnp.float16
    np.testing.assert_allclose(got.astype(np.float32), expected, atol=3e-3)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("which", ["prompt", "own", "both"])
def test_8_bits(kernels, dtype, which):
    q, *prompt, mask, own_k, own_v, lengths, layer = case(**SHAPES["rows"])
    small = lambda pair, name: [quantize(x, dtype) for x in pair] if which in (name, "both") else pair  # noqa: E731
    arguments = q, *small(prompt, "prompt"), mask, *small((own_k, own_v), "own"), lengths, layer
    for got, expected in zip(kernels.decode(*arguments), composed.decode(*arguments)):
        np.testing.assert_allclose(got, expected, atol=4e-6)


def test_nothing_to_see_is_zero(kernels):
    q, k, v, mask, own_k, own_v, lengths, layer = case(**SHAPES["rows"])
    nothing = shared(jnp.ones(lengths.shape, bool), jnp.zeros(k.shape[1:3], bool))
    out, lse = kernels.decode(q, k, v, nothing, own_k, own_v, jnp.zeros_like(lengths), layer)
    assert (np.asarray(out) == 0).all() and np.isneginf(lse).all()


def test_a_long_prompt_fills_the_gpu(kernels):
    q, k, own = (np.zeros(shape) for shape in ((1, 16, 28, 128), (1, 1, 131072, 4, 128), (1, 1, 16, 1024, 4, 128)))
    (programs, pairs, _), _ = kernels.plan(q, k, own).split_launch()
    assert kernels.PROGRAMS <= programs * pairs < 2 * kernels.PROGRAMS
