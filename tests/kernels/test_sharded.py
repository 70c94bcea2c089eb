"""Kernels on a mesh: each device gets its rows and heads and nothing else, and the whole is what one device makes."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from videoauto_jax.errors import BackendError
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
        monkeypatch.setattr(module, name, lambda *args, real=real, **more: seen.append(args) or real(*args, **more))
    monkeypatch.setattr(composed, "attend", lambda *args, **_: reference.attend(*args))
    return seen


@pytest.mark.parametrize("rows, kv_heads, part", [(4, 2, 1), (6, 2, 3), (3, 1, 3), (2, 4, 1)])
def test_attend(dense, mesh, shapes, rows, kv_heads, part):
    """Rows are split over `data` and `context`, of four devices, as far as these divide them."""
    mask = packed(dense.segments(0, rows, 9), causal=True)
    qkv = dense.arrays(0, rows, 9, 9, heads=4, kv_heads=kv_heads)
    whole = attend(*qkv, mask)
    shapes.clear()
    with jax.set_mesh(mesh):
        split = jax.jit(lambda *qkv: attend(*qkv, mask))(*qkv)
    assert shapes[0][0].shape == (part, 9, 2, 8) and shapes[0][3].start.shape == (part, 9)
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


@pytest.mark.parametrize("rows, chunk", [(2, 9), (3, 5)])
def test_the_limit_of_scores_is_a_device_s(dense, mesh, monkeypatch, rows, chunk):
    """Two rows of four heads lie on four devices; three rows on two, which take five queries at once."""
    monkeypatch.setattr(reference, "MAX_TOTAL", 6 * 9 * 5)
    mask, qkv = packed(np.ones((rows, 9), np.int32), causal=True), dense.arrays(0, rows, 9, 9)
    with jax.set_mesh(mesh):
        traced = str(jax.make_jaxpr(lambda *qkv: attend(*qkv, mask))(*qkv))
    assert f",{2 * chunk},9]" in traced and (chunk == 9 or ",18,9]" not in traced)


def decoding(small=False, prompt=6):
    """Two prompts of which one is mostly padding, five branches, 8 heads over 4."""
    normal = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)  # noqa: E731
    keys, own, q = normal(3, 2, prompt, 4, 8), normal(3, 2, 5, 3, 4, 8), normal(2, 5, 8, 8)
    keys, own = (quantize(x, "int8") for x in (keys, own)) if small else (keys, own)
    there = (np.arange(prompt) < np.array([[prompt - 1], [1]])).astype(np.int32)
    lengths = np.array([[2, 0, 1, 3, 0], [1, 2, 0, 0, 3]], np.int32)
    return q, DecodeCache(keys, keys, there, own, own, lengths)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("prompt, part", [(6, 3), (7, 7)])
def test_decode(mesh, shapes, small, prompt, part):
    """Rows, heads and, where it divides them, the prompt's keys are split."""
    q, cache = decoding(small, prompt)
    whole = decode_partial(q, cache, 1)
    shapes.clear()
    with jax.set_mesh(mesh):
        split = jax.jit(decode_partial)(q, cache, 1)
    q_seen, k_seen, _, mask, own_seen, *_ = shapes[0]
    assert (q_seen.shape, k_seen.shape, own_seen.shape) == ((1, 5, 4, 8), (3, 1, part, 2, 8), (3, 1, 5, 3, 2, 8))
    assert mask.start.shape == (1, 5)
    for got, wanted in zip(split, whole):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("kernel", [False, True])
def test_a_prompt_split_over_context_is_not_gathered(mesh, request, kernel):
    """By XLA's own decoding no more than by a kernel's; whole devices see nothing of the second prompt."""
    if kernel:
        request.getfixturevalue("shapes")
    q, cache = decoding(prompt=8)
    whole = decode_partial(q, cache, 2)
    keys, own = P(None, "data", "context", "tensor"), P(None, "data", None, None, "tensor")
    specs = P("data", None, "tensor"), DecodeCache(keys, keys, P("data"), own, own, P("data")), P()
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    with jax.set_mesh(mesh):
        program = jax.jit(decode_partial, in_shardings=placed).lower(q, cache, np.int32(2)).compile()
        split = program(*jax.device_put((q, cache, np.int32(2)), placed))
    assert "all-gather" not in program.as_text() and "all-reduce" in program.as_text()
    for got, wanted in zip(split, whole):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_inside_a_shard_map_over_some_axes_the_others_are_split(dense, mesh, shapes):
    mask, qkv = packed(dense.segments(0, 4, 9), causal=True), dense.arrays(0, 4, 9, 9)
    whole = reference._dense(*qkv, mask)
    run = jax.shard_map(lambda *qkv: attend(*qkv, mask), mesh=mesh, axis_names={"context"}, in_specs=P(), out_specs=P(),
                        check_vma=False)  # fmt: skip
    with jax.set_mesh(mesh):
        split = jax.jit(run)(*qkv)
    assert shapes[0][0].shape == (2, 9, 2, 8)
    for got, wanted in zip(split, whole):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_explicit_axes_are_refused(dense, shapes):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    mask = packed(dense.segments(0, 8, 5), causal=True)
    with jax.set_mesh(mesh), pytest.raises(BackendError, match="'data' is explicit"):
        attend(*dense.arrays(0, 8, 5, 5), mask)


def test_key_heads_are_repeated_only_as_often_as_devices_need(dense, shapes):
    mesh = jax.make_mesh((1, 8), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    mask, qkv = packed(dense.segments(0, 1, 9), causal=True), dense.arrays(0, 1, 9, 9, heads=16, kv_heads=4)
    out, vjp = jax.vjp(lambda *qkv: reference._dense(*qkv, mask)[0], *qkv)
    with jax.set_mesh(mesh):
        split, split_vjp = jax.vjp(jax.jit(lambda *qkv: attend(*qkv, mask)[0]), *qkv)
        bars = split_vjp(out)
    assert shapes[0][0].shape == (1, 9, 2, 8) and shapes[0][1].shape == (1, 9, 1, 8)
    for got, wanted in zip((split, *bars), (out, *vjp(out))):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_what_xla_compiles_is_left_to_it(dense, mesh, monkeypatch):
    monkeypatch.setattr(attention, "over_mesh", None)
    assert backends.module("attend", "reference").XLA_SPLITS
    with jax.set_mesh(mesh):
        attend(*dense.arrays(0, 2, 3, 3), packed(np.ones((2, 3), np.int32), causal=True))
