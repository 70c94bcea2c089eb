"""That the race detector, under which `test_backends.py` runs the Hopper kernels, would see a race."""

import jax
import jax.numpy as jnp
import pytest

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.attention import attend
from videoauto_jax.kernels.mask import packed

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the GPU interpreter needs jax 0.11")


def test_the_race_detector_is_on(dense, capfd, monkeypatch):
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from videoauto_jax.kernels import mosaic

    monkeypatch.setitem(mosaic.FORWARD, 64, (128, 2))
    monkeypatch.setattr(plgpu, "commit_smem", lambda: None)  # a read no longer ordered before the next copy
    qkv = (jnp.asarray(x, jnp.bfloat16) for x in dense.arrays(0, 1, 384, 384, 1, 1, 64))
    mask = packed(jnp.ones((1, 384), jnp.int32), causal=False)
    with backends.interpreted():
        jax.block_until_ready(attend(*qkv, mask, backend="mosaic"))
    assert "RACE DETECTED" in capfd.readouterr().out
