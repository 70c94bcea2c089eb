"""The oracle that every attention answers to: dense, float64, with gradients through output and log-sum-exp."""

import functools
import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def dense():
    """Namespace of the functions below."""
    return SimpleNamespace(arrays=arrays, oracle=oracle, check=check, written_out=written_out, segments=segments)


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
    return (
        out,
        lse,
        (
            np.einsum("bnts,bsnh->btnh", per_score, keys) * scale,
            fold(np.einsum("bnts,btnh->bsnh", per_score, q) * scale),
            fold(np.einsum("bnts,btnh->bsnh", weights, out_bar)),
        ),
    )


def check(function, qkv, allowed, *more, seed=0, atol=1e-5):
    """`function(q, k, v, *more) -> (out, lse)` agrees with the oracle, and its gradients do within twice `atol`.

    Called again with the same function and shapes this compiles nothing.
    """
    rng = np.random.default_rng(seed)
    seen = allowed.any(-1)
    out_bar = rng.normal(size=qkv[0].shape)
    lse_bar = rng.normal(size=qkv[0].shape[:3]) * seen[..., None]  # where a row sees nothing, its lse is constant
    out, lse, bars = oracle(*qkv, allowed, out_bar, lse_bar)
    got_bars, (got_out, got_lse) = gradients(function)(*qkv, out_bar, lse_bar, *more)
    np.testing.assert_allclose(got_out, out, atol=atol)
    np.testing.assert_allclose(got_lse, lse, atol=atol)
    assert (np.asarray(got_out)[~seen] == 0).all() and np.isneginf(np.asarray(got_lse)[~seen]).all()
    for got, bar in zip(got_bars, bars):
        np.testing.assert_allclose(got, bar, atol=2 * atol)


@functools.cache
def gradients(function):
    def loss(q, k, v, out_bar, lse_bar, *more):
        out, lse = function(q, k, v, *more)
        return jnp.sum(out * out_bar) + jnp.sum(jnp.where(lse_bar == 0, 0, lse) * lse_bar), (out, lse)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def written_out(segment_ids, causal):
    """What packed segments mean, pair by pair."""
    ids = np.asarray(segment_ids)
    allowed = (ids[:, :, None] == ids[:, None, :]) & (ids[:, :, None] > 0)
    return allowed & np.tri(ids.shape[1], dtype=bool) if causal else allowed


def segments(seed, rows, length, longest=6, padding=3):
    """Contiguous segments 1, 2, … of 1 to `longest` tokens with a padded end."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        lengths = rng.integers(1, longest + 1, size=length)
        made.append(np.repeat(np.arange(length) + 1, lengths)[:length])
    made = np.array(made, np.int32)
    made[:, length - min(padding, length - 1) :] = 0
    return made


@pytest.fixture
def cudnn_stand_in(monkeypatch):
    """cuDNN's contract written in XLA in its place; the list grows by each backward pass."""
    from videoauto_jax.kernels import cudnn

    calls = []
    monkeypatch.setattr(cudnn, "bind_forward", cudnn_forward)
    monkeypatch.setattr(cudnn, "bind_backward", lambda *a, **o: calls.append(1) or cudnn_backward(*a, **o))
    return calls


def cudnn_scores(q, k, k_lengths, options):
    """Scores where they count, and float32 keys for each query head's own."""
    group = q.shape[2] // k.shape[2]
    scores = jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, group, 2)) * options["scale"]
    allowed = jnp.ones(scores.shape[-2:], bool)
    if "CAUSAL" in options["mask_type"].name:
        allowed = jnp.tri(*allowed.shape, dtype=bool)
    if k_lengths.size:
        allowed = allowed & (jnp.arange(k.shape[1]) < k_lengths[:, None])[:, None, None]
    return jnp.where(allowed, scores, -jnp.inf), group


def cudnn_forward(q, k, v, q_lengths, k_lengths, **options):
    dtype, (q, k, v) = q.dtype, (x.astype(jnp.float32) for x in (q, k, v))
    scores, group = cudnn_scores(q, k, k_lengths, options)
    lse = jax.nn.logsumexp(scores, axis=-1)
    out = jnp.einsum("bnts,bsnh->btnh", jnp.exp(scores - lse[..., None]), jnp.repeat(v, group, 2))
    return out.astype(dtype), lse


def cudnn_backward(q, k, v, q_lengths, k_lengths, lse, out, out_bar, **options):
    scores, _ = cudnn_scores(q.astype(jnp.float32), k.astype(jnp.float32), k_lengths, options)
    return flash_backward(q, k, v, jnp.exp(scores - lse[..., None]), out, out_bar, options["scale"])


@pytest.fixture
def tokamax_stand_in(monkeypatch):
    """tokamax's own forward pass in XLA, and what its kernels compute backward, in the place of its GPU operation."""
    base = pytest.importorskip("tokamax._src.ops.attention.base")
    from videoauto_jax.kernels import tokamax_mosaic

    plain = base.DotProductAttention()

    def forward(q, k, v, *, mask, return_residuals):
        return plain(q, k, v, mask=mask, return_residuals=return_residuals)

    def backward(statistics, out, out_bar, q, k, v, *, mask, logits_scale, **options):
        wide = q.astype(jnp.float32), jnp.repeat(k, q.shape[2] // k.shape[2], 2).astype(jnp.float32)
        scores = jnp.einsum("btnh,bsnh->bnts", *wide) * logits_scale
        scores = jnp.where(mask.as_array(q.shape[1], k.shape[1]), scores, -jnp.inf)
        weights = jnp.exp(scores - statistics[0][..., None]) / statistics[1][..., None]
        return dict(zip("qkv", flash_backward(q, k, v, weights, out, out_bar, logits_scale)))

    operation = functools.partial(forward)
    operation.bind, operation.vjp = plain.bind, backward
    monkeypatch.setattr(tokamax_mosaic, "operation", lambda: operation)


def flash_backward(q, k, v, p, out, out_bar, scale):
    """Gradients from the weights `p` and the forward pass's output, as kernels compute them."""
    dtype, (q, k, v, out, out_bar) = q.dtype, (x.astype(jnp.float32) for x in (q, k, v, out, out_bar))
    group = q.shape[2] // k.shape[2]
    delta = jnp.einsum("btnh,btnh->bnt", out, out_bar)
    p_bar = jnp.einsum("btnh,bsnh->bnts", out_bar, jnp.repeat(v, group, 2))
    score_bar = p * (p_bar - delta[..., None]) * scale
    fold = lambda x: x.reshape(*k.shape[:3], group, k.shape[3]).sum(3)  # noqa: E731
    q_bar = jnp.einsum("bnts,bsnh->btnh", score_bar, jnp.repeat(k, group, 2))
    k_bar, v_bar = jnp.einsum("bnts,btnh->bsnh", score_bar, q), jnp.einsum("bnts,btnh->bsnh", p, out_bar)
    return tuple(x.astype(dtype) for x in (q_bar, fold(k_bar), fold(v_bar)))
