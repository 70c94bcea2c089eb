"""What surrounds cuDNN, with a stand-in for cuDNN; the suite of all backends runs on it too. cuDNN needs its GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import backends, cudnn
from videoauto_jax.kernels.attention import attend
from videoauto_jax.kernels.mask import Mask, packed, shared


def cases():
    ids = (np.arange(9) < np.array([[9], [4]])).astype(np.int32)
    yield packed(jnp.asarray(ids), causal=True, aligned=True), 9
    queries, keys = np.arange(9)[None] % 4 > 0, np.arange(7)[None] < np.array([[5], [0]])
    yield shared(jnp.asarray(np.repeat(queries, 2, 0)), jnp.asarray(keys), aligned=True), 7


@pytest.mark.parametrize("mask, keys", cases(), ids=["causal", "shared"])
def test_values_and_gradients(dense, cudnn_stand_in, mask, keys):
    qkv = dense.arrays(0, 2, 9, keys)
    dense.check(lambda q, k, v: cudnn.attend(q, k, v, mask), qkv, np.array(mask.allowed(keys)))
    assert len(cudnn_stand_in) == 2


def test_no_second_pass_where_the_log_sum_exp_is_not_used(dense, cudnn_stand_in):
    mask, keys = next(cases())
    jax.grad(lambda q, k, v: cudnn.attend(q, k, v, mask)[0].sum())(*dense.arrays(0, 2, 9, keys))
    assert len(cudnn_stand_in) == 1


def test_what_it_is_not_trusted_with_is_refused(dense, monkeypatch):
    monkeypatch.setattr(backends, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    qkv, ids = [jnp.asarray(x, jnp.bfloat16) for x in dense.arrays(0, 1, 4, 4)], np.ones((1, 4), np.int32)
    for mask in (packed(ids, causal=True), packed(ids, causal=False, aligned=True), Mask(ids, ids)):
        with pytest.raises(BackendError, match="'cudnn' cannot serve this call: it is given rows of one sequence"):
            attend(*qkv, mask, backend="cudnn")
    with pytest.raises(BackendError, match="not float32"):
        attend(*dense.arrays(0, 1, 4, 4), packed(ids, causal=True, aligned=True), backend="cudnn")


@pytest.mark.parametrize(
    "capability, library, reason", [(7.5, 92000, "compute capability 8.0"), (9.0, None, "finds no cuDNN")]
)
def test_a_gpu_without_it_is_refused(dense, monkeypatch, capability, library, reason):
    monkeypatch.setattr(backends, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(backends, "capability", lambda: capability)
    monkeypatch.setattr(cudnn._primitives(), "check_cudnn_version", lambda: library)
    qkv = [jnp.asarray(x, jnp.bfloat16) for x in dense.arrays(0, 1, 4, 4)]
    with pytest.raises(BackendError, match=reason):
        attend(*qkv, packed(np.ones((1, 4), np.int32), causal=True, aligned=True), backend="cudnn")
