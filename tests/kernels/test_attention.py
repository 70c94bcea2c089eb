"""Every attention against a dense float64 oracle: values, and gradients through the output and the log-sum-exp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoauto_jax.kernels import reference
from videoauto_jax.kernels.attention import Mask, attend, decode_attention, group_attention, merge, self_attention


def arrays(seed, rows, queries, keys, heads=4, kv_heads=2, size=8):
    """Random float32 q, k, v."""
    rng = np.random.default_rng(seed)
    shapes = (rows, queries, heads, size), (rows, keys, kv_heads, size), (rows, keys, kv_heads, size)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def oracle(q, k, v, allowed, out_bar=None, lse_bar=None):
    """Float64 attention over `allowed` [B, T, S], and the gradients of <out, out_bar> + <lse, lse_bar> if given."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeat, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    keys, values = np.repeat(k, repeat, axis=2), np.repeat(v, repeat, axis=2)
    scores = np.where(allowed[:, None], np.einsum("btnh,bsnh->bnts", q, keys) * scale, -np.inf)
    top = np.max(scores, axis=-1, initial=-1e300, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.moveaxis((top + np.log(total))[..., 0], 1, 2)
    lse[np.moveaxis(total[..., 0], 1, 2) == 0] = -np.inf
    weights = weights / np.where(total == 0, 1, total)
    out = np.einsum("bnts,bsnh->btnh", weights, values)
    if out_bar is None:
        return out, lse
    per_weight = np.einsum("btnh,bsnh->bnts", out_bar, values)
    per_score = weights * (per_weight - np.sum(weights * per_weight, -1, keepdims=True))
    per_score = per_score + weights * np.moveaxis(lse_bar, 2, 1)[..., None]
    fold = lambda x: x.reshape(*k.shape[:3], repeat, k.shape[3]).sum(3)  # noqa: E731
    return out, lse, (
        np.einsum("bnts,bsnh->btnh", per_score, keys) * scale,
        fold(np.einsum("bnts,btnh->bsnh", per_score, q) * scale),
        fold(np.einsum("bnts,btnh->bsnh", weights, out_bar)),
    )


def check(function, qkv, allowed, seed=0):
    """`function(q, k, v) -> (out, lse)` agrees with the oracle, and so do its gradients."""
    rng = np.random.default_rng(seed)
    seen = allowed.any(-1)
    out_bar = rng.normal(size=qkv[0].shape)
    lse_bar = rng.normal(size=qkv[0].shape[:3]) * seen[..., None]  # where a row sees nothing, its lse is constant
    out, lse, bars = oracle(*qkv, allowed, out_bar, lse_bar)
    got_out, got_lse, got_bars = gradients(function, qkv, out_bar, lse_bar)
    np.testing.assert_allclose(got_out, out, atol=1e-5)
    np.testing.assert_allclose(got_lse, lse, atol=1e-5)
    assert (np.asarray(got_out)[~seen] == 0).all() and np.isneginf(np.asarray(got_lse)[~seen]).all()
    for got, bar in zip(got_bars, bars):
        np.testing.assert_allclose(got, bar, atol=2e-5)


def gradients(function, qkv, out_bar, lse_bar):
    def loss(q, k, v):
        out, lse = function(q, k, v)
        return jnp.sum(out * out_bar) + jnp.sum(jnp.where(lse_bar == 0, 0, lse) * lse_bar), (out, lse)

    bars, (out, lse) = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, lse, bars


def allowed_by(query_segments, key_segments, causal=False):
    """What a mask means, written out."""
    allowed = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments[:, :, None] > 0)
    if causal:
        allowed &= np.tri(allowed.shape[1], allowed.shape[2], dtype=bool)
    return allowed


def segments(seed, rows, length, longest=6, padding=3):
    """Contiguous segments 1, 2, … of 1 to `longest` tokens with a padded end."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        lengths = rng.integers(1, longest + 1, size=length)
        made.append(np.repeat(np.arange(length) + 1, lengths)[:length])
    made = np.array(made, np.int32)
    made[:, length - padding :] = 0
    return made


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 2),
    queries=st.integers(1, 7),
    keys=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    repeat=st.sampled_from([1, 2, 7]),
    causal=st.booleans(),
)
def test_attend_equals_the_oracle(seed, rows, queries, keys, kv_heads, repeat, causal):
    rng = np.random.default_rng(seed)
    keys = queries if causal else keys
    query_segments = rng.integers(0, 3, (rows, queries)).astype(np.int32)
    key_segments = query_segments if causal else rng.integers(0, 3, (rows, keys)).astype(np.int32)
    mask = Mask(query_segments, key_segments, causal)
    qkv = arrays(seed, rows, queries, keys, kv_heads * repeat, kv_heads)
    check(lambda q, k, v: attend(q, k, v, mask), qkv, allowed_by(query_segments, key_segments, causal))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [33, 48])
def test_a_band_equals_dense(length, causal, monkeypatch):
    banded = []
    monkeypatch.setattr(reference, "_banded", lambda *args, real=reference._banded: banded.append(1) or real(*args))
    ids = segments(length, 2, length, longest=8)
    mask = Mask(ids, ids, causal, segment_bound=8)
    check(lambda q, k, v: attend(q, k, v, mask), arrays(1, 2, length, length), allowed_by(ids, ids, causal))
    assert banded


@pytest.mark.parametrize("causal", [True, False])
def test_chunks_equal_dense(causal, monkeypatch):
    monkeypatch.setattr(reference, "MAX_SCORES", 5 * 23)
    ids = segments(2, 2, 23)
    mask = Mask(ids, ids, causal)
    check(lambda q, k, v: attend(q, k, v, mask), arrays(2, 2, 23, 23), allowed_by(ids, ids, causal))


def test_chunks_never_exceed_the_limit(monkeypatch):
    monkeypatch.setattr(reference, "MAX_SCORES", 4 * 100)
    ids = np.ones((1, 100), np.int32)
    q, k, v = arrays(3, 1, 100, 100, heads=1, kv_heads=1)
    traced = jax.make_jaxpr(lambda q: self_attention(q, k, v, ids, causal=True))(q)
    assert "100,100" not in str(traced)


def test_a_row_that_sees_nothing_has_no_say():
    q, k, v = arrays(4, 1, 3, 5)
    query_segments, key_segments = np.array([[1, 0, 2]], np.int32), np.array([[1, 1, 0, 1, 3]], np.int32)
    mask = Mask(query_segments, key_segments)
    allowed = allowed_by(query_segments, key_segments)
    assert not allowed[:, 1:].any()
    check(lambda q, k, v: attend(q, k, v, mask), (q, k, v), allowed)
    check(lambda q, k, v: merge(attend(q, k, v, mask), attend(q, k, v, mask_nothing(3, 5))), (q, k, v), allowed)
    nothing = lambda q, k, v: merge(*[attend(q, k, v, mask_nothing(3, 5))] * 2)  # noqa: E731
    check(nothing, (q, k, v), np.zeros((1, 3, 5), bool))


def mask_nothing(queries, keys):
    return Mask(np.ones((1, queries), np.int32), np.zeros((1, keys), np.int32))


def test_merging_parts_is_attention_over_their_union():
    qkv = arrays(5, 2, 6, 11)
    segments_of = np.ones((2, 6), np.int32), np.ones((2, 11), np.int32)
    cuts = [(0, 4), (4, 5), (5, 11)]

    def in_parts(q, k, v):
        parts = [attend(q, k[:, a:b], v[:, a:b], Mask(segments_of[0], segments_of[1][:, a:b])) for a, b in cuts]
        return merge(merge(parts[0], parts[1]), parts[2])

    check(in_parts, qkv, allowed_by(*segments_of))


def test_large_scores_do_not_overflow():
    q, k, v = (100 * x for x in arrays(6, 1, 4, 4))
    ids = np.ones((1, 4), np.int32)
    out, lse = attend(q, k, v, Mask(ids, ids))
    expected, expected_lse = oracle(q, k, v, allowed_by(ids, ids))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)


def test_bfloat16_stays_near_float32_and_keeps_its_dtype():
    q, k, v = arrays(7, 2, 9, 9)
    ids = segments(7, 2, 9)
    out, lse = attend(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), Mask(ids, ids, causal=True))
    expected, expected_lse = oracle(q, k, v, allowed_by(ids, ids, causal=True))
    assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=3e-2)
    np.testing.assert_allclose(lse, expected_lse, atol=3e-2)


@pytest.mark.parametrize("bound", [None, 4])
def test_group_attention_is_causal_attention_without_the_other_branches(bound):
    prompt, branches = [1, 1, 1, 1, 1, 0], [2, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 5, 0, 0]
    ids = np.array([prompt + branches, [1, 1, 0, 0, 0, 0] + branches[::-1]], np.int32)
    length = ids.shape[1]
    first, second = ids[:, :, None], ids[:, None, :]
    allowed = (first > 0) & ((first == second) | (second == 1)) & np.tri(length, dtype=bool)
    qkv = arrays(8, 2, length, length)
    grouped = lambda q, k, v: group_attention(q, k, v, ids, prompt_length=6, segment_bound=bound)  # noqa: E731
    out_bar = np.random.default_rng(9).normal(size=qkv[0].shape)
    out, _, bars = oracle(*qkv, allowed, out_bar, np.zeros(qkv[0].shape[:3]))
    np.testing.assert_allclose(jax.jit(grouped)(*qkv), out, atol=1e-5)
    got = jax.jit(jax.grad(lambda *qkv: jnp.sum(grouped(*qkv) * out_bar), argnums=(0, 1, 2)))(*qkv)
    for mine, bar in zip(got, bars):
        np.testing.assert_allclose(mine, bar, atol=2e-5)


@pytest.mark.parametrize("repeat", [1, 7])
def test_decoding_is_the_last_row_of_each_branch(repeat):
    rows, branches, prompt, slots, size = 2, 3, 5, 4, 8
    rng = np.random.default_rng(10)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    q = normal(rows, branches, 2 * repeat, size)
    shared = normal(2, rows, prompt, 2, size)
    own = normal(2, rows, branches, slots, 2, size)
    prompt_segments = np.array([[1] * 5, [1, 1, 0, 0, 0]], np.int32)
    lengths = np.array([[1, 4, 0], [2, 3, 1]], np.int32)  # no own keys at all: the prompt alone
    got = jax.jit(decode_attention)(q, *shared, prompt_segments, *own, lengths)
    for b in range(rows):
        for g in range(branches):
            n, m = int(prompt_segments[b].sum()), int(lengths[b, g])
            k, v = (np.concatenate([shared[i, b, :n], own[i, b, g, :m]])[None] for i in (0, 1))
            expected, _ = oracle(q[b, g][None, None], k, v, np.ones((1, 1, n + m), bool))
            np.testing.assert_allclose(got[b, g], expected[0, 0], atol=1e-5)


def test_an_unknown_backend_is_named():
    ids = np.ones((1, 2), np.int32)
    with pytest.raises(ValueError, match="no attention backend 'flash'"):
        attend(*arrays(0, 1, 2, 2), Mask(ids, ids), backend="flash")
