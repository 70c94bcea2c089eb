"""What surrounds cuDNN, with a stand-in for cuDNN: its contract written in XLA. cuDNN itself needs its GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import backends, cudnn
from videoauto_jax.kernels.attention import attend
from videoauto_jax.kernels.mask import Mask, packed, shared


def weights(q, k, k_lengths, options):
    """Scores, and where they count."""
    group = q.shape[2] // k.shape[2]
    scores = jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, group, 2)) * options["scale"]
    allowed = jnp.ones(scores.shape[-2:], bool)
    if "CAUSAL" in options["mask_type"].name:
        allowed = jnp.tri(*allowed.shape, dtype=bool)
    if k_lengths.size:
        allowed = allowed & (jnp.arange(k.shape[1]) < k_lengths[:, None])[:, None, None]
    return jnp.where(allowed, scores, -jnp.inf), group


def forward(q, k, v, q_lengths, k_lengths, **options):
    scores, group = weights(q, k, k_lengths, options)
    lse = jax.nn.logsumexp(scores, axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", jnp.exp(scores - lse[..., None]), jnp.repeat(v, group, 2)), lse


def backward(q, k, v, q_lengths, k_lengths, lse, out, out_bar, **options):
    scores, group = weights(q, k, k_lengths, options)
    p = jnp.exp(scores - lse[..., None])
    delta = jnp.einsum("btnh,btnh->bnt", out, out_bar)
    p_bar = jnp.einsum("btnh,bsnh->bnts", out_bar, jnp.repeat(v, group, 2))
    score_bar = p * (p_bar - delta[..., None]) * options["scale"]
    fold = lambda x: x.reshape(*k.shape[:3], group, k.shape[3]).sum(3)  # noqa: E731
    q_bar = jnp.einsum("bnts,bsnh->btnh", score_bar, jnp.repeat(k, group, 2))
    k_bar, v_bar = jnp.einsum("bnts,btnh->bsnh", score_bar, q), jnp.einsum("bnts,btnh->bsnh", p, out_bar)
    return q_bar, fold(k_bar), fold(v_bar)


@pytest.fixture
def stand_in(monkeypatch):
    calls = []
    monkeypatch.setattr(cudnn, "bind_forward", forward)
    monkeypatch.setattr(cudnn, "bind_backward", lambda *a, **o: calls.append(1) or backward(*a, **o))
    return calls


def cases():
    ids = (np.arange(9) < np.array([[9], [4]])).astype(np.int32)
    yield packed(jnp.asarray(ids), causal=True, aligned=True), 9
    queries, keys = np.arange(9)[None] % 4 > 0, np.arange(7)[None] < np.array([[5], [0]])
    yield shared(jnp.asarray(np.repeat(queries, 2, 0)), jnp.asarray(keys), aligned=True), 7


@pytest.mark.parametrize("mask, keys", cases(), ids=["causal", "shared"])
def test_values_and_gradients(dense, stand_in, mask, keys):
    qkv = dense.arrays(0, 2, 9, keys)
    dense.check(lambda q, k, v: cudnn.attend(q, k, v, mask), qkv, np.array(mask.allowed(keys)))
    assert len(stand_in) == 2


def test_no_second_pass_where_the_log_sum_exp_is_not_used(dense, stand_in):
    mask, keys = next(cases())
    jax.grad(lambda q, k, v: cudnn.attend(q, k, v, mask)[0].sum())(*dense.arrays(0, 2, 9, keys))
    assert len(stand_in) == 1


def test_what_it_is_not_trusted_with_is_refused(dense, monkeypatch):
    monkeypatch.setattr(backends, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    qkv, ids = [jnp.asarray(x, jnp.bfloat16) for x in dense.arrays(0, 1, 4, 4)], np.ones((1, 4), np.int32)
    for mask in (packed(ids, causal=True), packed(ids, causal=False, aligned=True), Mask(ids, ids)):
        with pytest.raises(BackendError, match="'cudnn' cannot serve this call: it is given rows of one sequence"):
            attend(*qkv, mask, backend="cudnn")
    with pytest.raises(BackendError, match="not float32"):
        attend(*dense.arrays(0, 1, 4, 4), packed(ids, causal=True, aligned=True), backend="cudnn")
