"""Kernels on a mesh: each device gets its rows and heads and nothing else, and the whole is what one device makes."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from videoauto_jax.kernels import attention, backends, composed, reference
from videoauto_jax.kernels.attention import DecodeCache, attend, decode_partial
from videoauto_jax.kernels.mask import packed
from videoauto_jax.kernels.quantized import quantize


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 2, 2), ("data", "tensor", "context"), axis_types=(AxisType.Auto,) * 3)


@pytest.fixture
def shapes(monkeypatch):
    """Shapes that the backends are called with, once they pretend to be kernels of which XLA knows nothing."""
    seen = []
    for module, name in ((reference, "attend"), (composed, "decode")):
        monkeypatch.setattr(module, "XLA_SPLITS", False)
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real: seen.append(args) or real(*args))
    monkeypatch.setattr(composed, "attend", reference.attend)
    return seen


@pytest.mark.parametrize("rows, kv_heads, expected", [(4, 2, (2, 9, 2, 8)), (3, 1, (3, 9, 4, 8)), (2, 4, (1, 9, 2, 8))])
def test_attend(dense, mesh, shapes, rows, kv_heads, expected):
    mask = packed(dense.segments(0, rows, 9), causal=True)
    qkv = dense.arrays(0, rows, 9, 9, heads=4, kv_heads=kv_heads)
    whole = attend(*qkv, mask)
    shapes.clear()
    with jax.set_mesh(mesh):
        split = jax.jit(lambda *qkv: attend(*qkv, mask))(*qkv)
    assert shapes[0][0].shape == expected and shapes[0][3].start.shape == expected[:2]
    for got, wanted in zip(split, whole):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("rows, each", [(8, 1), (4, 1), (6, 3), (3, 3)])
def test_rows_are_split_over_as_many_devices_as_divide_them(dense, shapes, rows, each):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "expert"), axis_types=(AxisType.Auto,) * 3)
    mask, qkv = packed(dense.segments(0, rows, 5), causal=True), dense.arrays(0, rows, 5, 5)
    with jax.set_mesh(mesh):
        split = jax.jit(lambda *qkv: attend(*qkv, mask))(*qkv)
    assert shapes[0][0].shape[0] == each
    np.testing.assert_allclose(split[0], reference._dense(*qkv, mask)[0], atol=1e-6)


@pytest.mark.parametrize("small", [False, True])
def test_decode(mesh, shapes, small):
    normal = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)  # noqa: E731
    prompt, own, q = normal(3, 2, 6, 4, 8), normal(3, 2, 5, 3, 4, 8), normal(2, 5, 8, 8)
    prompt, own = (quantize(x, "int8") for x in (prompt, own)) if small else (prompt, own)
    cache = DecodeCache(prompt, prompt, np.ones((2, 6), np.int32), own, own, np.full((2, 5), 2, np.int32))
    whole = decode_partial(q, cache, 1)
    shapes.clear()
    with jax.set_mesh(mesh):
        split = jax.jit(decode_partial)(q, cache, 1)
    q_seen, k_seen, _, mask, own_seen, *_ = shapes[0]
    assert (q_seen.shape, k_seen.shape, own_seen.shape) == ((1, 5, 4, 8), (3, 1, 6, 2, 8), (3, 1, 5, 3, 2, 8))
    assert mask.start.shape == (1, 5)
    for got, wanted in zip(split, whole):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_what_xla_compiles_is_left_to_it(dense, mesh, monkeypatch):
    monkeypatch.setattr(attention, "over_mesh", None)
    assert backends.module("attend", "reference").XLA_SPLITS
    with jax.set_mesh(mesh):
        attend(*dense.arrays(0, 2, 3, 3), packed(np.ones((2, 3), np.int32), causal=True))
