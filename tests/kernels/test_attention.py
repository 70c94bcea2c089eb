"""The op's algebra on the reference backend, against the dense oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import composed, reference
from videoauto_jax.kernels.attention import (
    DecodeCache,
    attend,
    decode_attention,
    decode_partial,
    group_attention,
    merge,
    self_attention,
)
from videoauto_jax.kernels.mask import Mask, packed, shared
from videoauto_jax.kernels.quantized import dequantize, quantize

# rows, queries, keys, key/value heads, queries per key/value head; a new shape is a new program.
SHAPES = [(1, 1, 1, 1, 1), (1, 1, 9, 3, 2), (2, 7, 9, 1, 7), (2, 3, 0, 2, 1), (1, 7, 2, 2, 2), (2, 2, 7, 1, 2)]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from(SHAPES))
def test_attend_equals_the_oracle(dense, seed, shape):
    rows, queries, keys, kv_heads, repeat = shape
    ends = np.sort(np.random.default_rng(seed).integers(0, keys + 1, (2, rows, queries)), axis=0).astype(np.int32)
    mask = Mask(*ends)  # any range, the empty one included
    index = np.arange(keys)
    allowed = (ends[0][..., None] <= index) & (index < ends[1][..., None])
    qkv = dense.arrays(seed, rows, queries, keys, kv_heads * repeat, kv_heads)
    dense.check(attend, qkv, allowed, mask)


LONGEST = 25  # 6 runs of 4 tokens and padding; pieces of 3 do not divide it


@settings(deadline=None, max_examples=40)
@given(
    ids=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=6), min_size=3, max_size=3),
    causal=st.booleans(),
)
def test_ranges_of_packed_segments_are_the_segments(dense, ids, causal):
    rows = [np.repeat(np.arange(len(runs)) + 1, [n for _, n in runs]) * np.repeat([s > 0 for s, _ in runs],
            [n for _, n in runs]) for runs in ids]  # fmt: skip
    segments = np.array([np.pad(row, (0, LONGEST - len(row))) for row in rows], np.int32)
    mask = packed(jnp.asarray(segments), causal=causal)
    np.testing.assert_array_equal(mask.allowed(LONGEST), dense.written_out(segments, causal))
    for at in range(0, LONGEST, 3):
        piece = mask.of_keys(at, 3).allowed(3)
        np.testing.assert_array_equal(piece[..., : LONGEST - at], mask.allowed(LONGEST)[..., at : at + 3])


def test_a_shared_range_is_every_true_query_times_every_true_key():
    queries = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0]], bool)
    keys = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    got = shared(queries, keys).allowed(4)
    np.testing.assert_array_equal(got, queries[:, :, None] & keys[:, None, :])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [33, 48])
def test_a_band_equals_dense(dense, length, causal, monkeypatch):
    banded = []
    monkeypatch.setattr(reference, "_banded", lambda *args, real=reference._banded: banded.append(1) or real(*args))
    ids = dense.segments(length, 2, length, longest=8)
    mask = packed(ids, causal=causal, bound=8)
    qkv = dense.arrays(1, 2, length, length)
    dense.check(lambda q, k, v: attend(q, k, v, mask), qkv, dense.written_out(ids, causal))
    assert banded


@pytest.mark.parametrize("causal", [True, False])
def test_chunks_equal_dense(dense, causal, monkeypatch):
    monkeypatch.setattr(reference, "MAX_SCORES", 5 * 23)
    ids = dense.segments(2, 2, 23)
    mask = packed(ids, causal=causal)
    qkv = dense.arrays(2, 2, 23, 23)
    dense.check(lambda q, k, v: attend(q, k, v, mask), qkv, dense.written_out(ids, causal))


def test_gradients_of_many_chunks_are_summed_in_float32(monkeypatch):
    """In bfloat16 a sum of equal terms stands still once it is 256 times as large as one of them."""
    length = 1024
    q, k = (jnp.zeros((1, length, 1, 8), jnp.bfloat16) for _ in range(2))
    mask = Mask(jnp.zeros((1, length), jnp.int32), jnp.full((1, length), 2, jnp.int32))
    v = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    monkeypatch.setattr(reference, "MAX_SCORES", 2)  # a chunk for every query
    d_v = jax.grad(lambda v: attend(q, k[:, :2], v, mask)[0].astype(jnp.float32).sum())(v)
    np.testing.assert_array_equal(np.float32(d_v), np.full(v.shape, length / 2))


def test_shapes_that_do_not_belong_together_are_named(dense):
    q, k, v = dense.arrays(0, 2, 3, 5, heads=4, kv_heads=2)
    mask = Mask(*np.zeros((2, 2, 3), np.int32))
    for wrong in ((q[:, :, :3], k, v), (q, k, v[:, :4]), (q[:1], k, v), (q[..., :4], k, v), (q[:, :2], k, v)):
        with pytest.raises(BackendError, match="belong together|multiple"):
            attend(*wrong, mask)


@pytest.mark.parametrize("limit, scores", [("MAX_SCORES", 4 * 100), ("MAX_TOTAL", 2 * 6 * 4 * 100)])
def test_chunks_never_exceed_the_limit(dense, monkeypatch, limit, scores):
    monkeypatch.setattr(reference, limit, scores)
    ids = np.ones((2, 100), np.int32)
    q, k, v = dense.arrays(3, 2, 100, 100, heads=6, kv_heads=1)
    traced = jax.make_jaxpr(lambda q: self_attention(q, k, v, ids, causal=True))(q)
    assert ",24,100]" in str(traced) and "100,100" not in str(traced)


def test_a_query_that_sees_nothing_has_no_say(dense):
    qkv = dense.arrays(4, 1, 3, 5)
    some, nothing = Mask(*np.array([[[1, 2, 4]], [[3, 2, 4]]])), Mask(*np.zeros((2, 1, 3), np.int32))
    allowed = np.array(some.allowed(5))
    assert not allowed[:, 1:].any()
    dense.check(lambda q, k, v: attend(q, k, v, some), qkv, allowed)
    dense.check(lambda q, k, v: merge(attend(q, k, v, some), attend(q, k, v, nothing)), qkv, allowed)
    twice = lambda q, k, v: merge(*[attend(q, k, v, nothing)] * 2)  # noqa: E731
    dense.check(twice, qkv, np.zeros((1, 3, 5), bool))


def test_merging_parts_is_attention_over_their_union(dense):
    qkv = dense.arrays(5, 2, 6, 11)
    mask = Mask(np.full((2, 6), 1), np.full((2, 6), 10))
    cuts = [(0, 4), (4, 5), (5, 11)]

    def in_parts(q, k, v):
        parts = [attend(q, k[:, a:b], v[:, a:b], mask.of_keys(a, b - a)) for a, b in cuts]
        return merge(merge(parts[0], parts[1]), parts[2])

    dense.check(in_parts, qkv, np.array(mask.allowed(11)))


def test_large_scores_do_not_overflow(dense):
    q, k, v = (100 * x for x in dense.arrays(6, 1, 4, 4))
    ids = np.ones((1, 4), np.int32)
    out, lse = attend(q, k, v, packed(ids, causal=False))
    expected, expected_lse = dense.oracle(q, k, v, dense.written_out(ids, False))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)


def test_bfloat16_stays_near_float32_and_keeps_its_dtype(dense):
    q, k, v = dense.arrays(7, 2, 9, 9)
    ids = dense.segments(7, 2, 9)
    out, lse = attend(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), packed(ids, causal=True))
    expected, expected_lse = dense.oracle(q, k, v, dense.written_out(ids, True))
    assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=3e-2)
    np.testing.assert_allclose(lse, expected_lse, atol=3e-2)


@pytest.mark.parametrize("bound", [None, 4])
def test_group_attention_is_causal_attention_without_the_other_branches(dense, bound):
    prompt, branches = [1, 1, 1, 1, 1, 0], [2, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 5, 0, 0]
    ids = np.array([prompt + branches, [1, 1, 0, 0, 0, 0] + branches[::-1]], np.int32)
    length = ids.shape[1]
    first, second = ids[:, :, None], ids[:, None, :]
    allowed = (first > 0) & ((first == second) | (second == 1)) & np.tri(length, dtype=bool)
    qkv = dense.arrays(8, 2, length, length)
    grouped = lambda q, k, v: group_attention(q, k, v, ids, prompt_length=6, segment_bound=bound)  # noqa: E731
    out_bar = np.random.default_rng(9).normal(size=qkv[0].shape)
    out, _, bars = dense.oracle(*qkv, allowed, out_bar, np.zeros(qkv[0].shape[:3]))
    np.testing.assert_allclose(jax.jit(grouped)(*qkv), out, atol=1e-5)
    got = jax.jit(jax.grad(lambda *qkv: jnp.sum(grouped(*qkv) * out_bar), argnums=(0, 1, 2)))(*qkv)
    for mine, bar in zip(got, bars):
        np.testing.assert_allclose(mine, bar, atol=2e-5)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_quantized_vectors_keep_their_length_within_rounding(dtype):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 16)).astype(np.float32) * np.array([1e-3, 1, 1e3])[:, None]
    x[0, 0, 0] = 0
    got = dequantize(quantize(x, dtype), jnp.float32)
    largest = np.abs(x).max(-1, keepdims=True)
    assert (np.abs(got - x) <= largest * (0.5 / 127 if dtype == "int8" else 2**-4) + 1e-12).all()


def test_a_quantized_cache_is_what_it_stands_for(dense):
    q, k, v = dense.arrays(1, 1, 3, 6)
    own = np.random.default_rng(1).normal(size=(2, 1, 1, 3, 4, 2, 8)).astype(np.float32)
    small = [quantize(x, "int8") for x in (k[None], v[None], *own)]
    whole = [dequantize(x, np.float32) for x in small]
    there, lengths = np.ones((1, 6), np.int32), np.array([[2, 0, 3]], np.int32)
    got, expected = (
        decode_partial(q, DecodeCache(*some[:2], there, *some[2:], lengths, reach=3), 0)[0] for some in (small, whole)
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)


def decoded(seed, branches, heads, kv_heads, slots, rows=2, prompt=6, size=8):
    """What `decode_attention` takes: prompts of 1 to all tokens, own caches empty or filled to any length."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    q, newest = normal(rows, branches, heads, size), normal(2, rows, branches, kv_heads, size)
    shared_kv, own = normal(2, 3, rows, prompt, kv_heads, size), normal(2, 3, rows, branches, slots, kv_heads, size)
    there = (np.arange(prompt) < rng.integers(1, prompt + 1, (rows, 1))).astype(np.int32)
    lengths = rng.integers(0, slots + 1, (rows, branches)).astype(np.int32)
    return q, *newest, DecodeCache(*shared_kv, there, *own, lengths)


decode = jax.jit(decode_attention)


def is_the_last_row_of_each_branch(dense, q, k, v, cache, layer, got):
    for b, g in np.ndindex(q.shape[:2]):
        there, m = cache.segments[b] > 0, int(cache.lengths[b, g])
        prompt, own = (cache.prompt_k, cache.prompt_v), (cache.k, cache.v)
        parts = ([x[layer, b, there], y[layer, b, g, :m], z[b, g][None]] for x, y, z in zip(prompt, own, (k, v)))
        keys, values = (np.concatenate(part)[None] for part in parts)
        expected, _ = dense.oracle(q[b, g][None, None], keys, values, np.ones((1, 1, keys.shape[1]), bool))
        np.testing.assert_allclose(got[b, g], expected[0, 0], atol=1e-5)


@pytest.mark.parametrize("group", [1, 7])
def test_decoding_from_a_prompt_in_pieces(dense, group, monkeypatch):
    """As off the CPU."""
    monkeypatch.setattr(composed, "SPLIT", 3)
    monkeypatch.setattr(composed.backends, "device_kind", lambda: "something new")
    arguments = decoded(10, 3, 2 * group, 2, 4)
    is_the_last_row_of_each_branch(dense, *arguments, 2, jax.jit(lambda *a: decode_attention(*a))(*arguments, 2))


# branches, query heads, key/value heads, slots: 112 and 64 rows per key head; no own keys at all.
DECODED = [(16, 28, 4, 3), (16, 32, 8, 0), (3, 4, 2, 4), (1, 2, 2, 1)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from(DECODED), layer=st.integers(0, 2))
def test_decoding_is_the_last_row_of_each_branch(dense, seed, shape, layer):
    arguments = decoded(seed, *shape)
    is_the_last_row_of_each_branch(dense, *arguments, layer, decode(*arguments, layer))


def test_caches_that_do_not_belong_together_are_named():
    q, _, _, cache = decoded(0, 3, 4, 2, 4)
    wrong = {"prompt_v": cache.prompt_v[:, :, :5], "segments": cache.segments[:1], "k": cache.k[:, :, :2],
             "v": cache.v[..., :4], "lengths": cache.lengths[:, :1]}  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(BackendError, match=f"^{name} of the cache is"):
            decode_partial(q, dataclasses.replace(cache, **{name: value}), 0)
    with pytest.raises(BackendError, match="3 query heads are no multiple of 2"):
        decode_partial(q[:, :, :3], cache, 0)
    with pytest.raises(BackendError, match="no decode backend 'flash'. There are: auto, composed, triton"):
        decode_partial(q, cache, 0, backend="flash")
