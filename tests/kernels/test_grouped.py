"""Grouped matrix products against a loop over groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.kernels import grouped

BOTH = pytest.mark.parametrize("product", [grouped.by_blocks, grouped.by_ragged_dot, grouped.grouped_matmul])


def looped(x, kernels, sizes):
    ends = np.cumsum(sizes)
    out = np.zeros((len(x), kernels.shape[2]))
    for kernel, start, end in zip(kernels, ends - sizes, ends):
        out[start:end] = x[start:end].astype(np.float64) @ kernel
    return out


def arrays(rows, groups, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 12)).astype(np.float32), rng.normal(size=(groups, 12, 10)).astype(np.float32)


@BOTH
@pytest.mark.parametrize(
    "sizes", [[5, 0, 7, 0, 0, 60, 1], [0, 0, 100], [0, 0, 0], [73], [1] * 40, [300, 20], [8, 16, 8]], ids=str
)
def test_the_product_is_that_of_a_loop(product, sizes):
    sizes = np.array(sizes, np.int32)
    for beyond in (0, 9):  # rows that belong to no group
        x, kernels = arrays(sizes.sum() + beyond, len(sizes))
        if len(x):
            found = jax.jit(product)(x, kernels, sizes)
            np.testing.assert_allclose(found, looped(x, kernels, sizes), atol=1e-5)


def test_a_matrix_without_rows_is_not_read():
    x, kernels = arrays(30, 4)
    kernels[2] = np.nan
    out = jax.jit(grouped.by_blocks)(x, kernels, np.array([10, 12, 0, 8], np.int32))
    assert np.isfinite(out).all()


def test_blocks_compute_few_more_rows_than_there_are():
    sizes = np.random.default_rng(0).multinomial(4096, np.ones(128) / 128)
    blocks = grouped._Blocks(4096, jnp.asarray(sizes))
    assert int(blocks.used.sum()) * blocks.size < 2 * 4096


@pytest.mark.parametrize("sizes", [[5, 0, 7, 3, 60], [0, 0, 40]], ids=str)
def test_gradients(sizes):
    sizes = np.array(sizes, np.int32)
    x, kernels = arrays(sizes.sum() + 4, len(sizes))
    y = np.random.default_rng(1).normal(size=(len(x), 10)).astype(np.float32)

    def loss(product):
        return lambda x, kernels: jnp.sum(product(x, kernels, sizes) * y)

    def plain(x, kernels, sizes):
        group = jnp.asarray(np.repeat(np.arange(len(sizes) + 1), [*sizes, 4]))
        padded = jnp.concatenate([kernels, jnp.zeros((1, 12, 10))])
        return jnp.einsum("md,mdf->mf", x, padded[group])

    expected = jax.grad(loss(plain), (0, 1))(x, kernels)
    for found, want in zip(jax.jit(jax.grad(loss(grouped.grouped_matmul), (0, 1)))(x, kernels), expected):
        np.testing.assert_allclose(found, want, atol=1e-4)
    np.testing.assert_allclose(grouped.outer_by_ragged_dot(x, y, sizes), expected[1], atol=1e-4)


def test_bfloat16_sums_in_float32():
    sizes = np.array([40, 24], np.int32)
    x, kernels = (jnp.asarray(a, jnp.bfloat16) for a in arrays(64, 2))
    found = grouped.grouped_matmul(x, kernels, sizes)
    assert found.dtype == jnp.bfloat16
    exact = looped(np.asarray(x, np.float32), np.asarray(kernels, np.float32), sizes)
    np.testing.assert_allclose(found.astype(np.float32), exact, rtol=2**-7, atol=1e-2)
