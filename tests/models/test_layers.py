"""Projections: the hand-written gradients are those of the equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.models.layers import _project

# Widening, narrowing, square, with heads on either side, and rows without a `...`.
CASES = {
    "...d,df->...f": ((2, 5, 3), (3, 7)),
    "...f,fd->...d": ((2, 5, 7), (7, 3)),
    "...d,dnh->...nh": ((2, 5, 6), (6, 2, 4)),
    "...nh,nhd->...d": ((2, 5, 2, 3), (2, 3, 6)),
    "qd,dcnh->qcnh": ((5, 6), (6, 3, 2, 2)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("equation", CASES)
def test_gradients_are_those_of_the_equation(equation, dtype):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in CASES[equation])
    weights = jnp.asarray(rng.normal(size=jnp.einsum(equation, x, kernel).shape), dtype)

    def gradients(project):
        return jax.grad(lambda x, kernel: jnp.sum((project(equation, x, kernel) * weights).astype(jnp.float32)), (0, 1))

    mine, theirs = gradients(_project)(x, kernel), gradients(jnp.einsum)(x, kernel)
    for found, expected in zip(mine, theirs):
        assert found.dtype == dtype
        found, expected = np.float32(found), np.float32(expected)
        # Sums that cancel are as wrong as their largest term: bfloat16 is held to the array's scale, not each number's.
        tolerance = 1e-5 if dtype == jnp.float32 else 0.02
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance * np.abs(expected).max())


def test_a_stack_is_differentiated_like_its_equation():
    rng = np.random.default_rng(1)
    x, kernels = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 4, 3), (2, 3, 3)))

    def loss(project):
        def body(x, kernel):
            return jnp.tanh(project("...d,df->...f", x, kernel)), None

        return lambda kernels: jnp.sum(jax.lax.scan(jax.checkpoint(body), x, kernels)[0] ** 2)

    np.testing.assert_allclose(jax.grad(loss(_project))(kernels), jax.grad(loss(jnp.einsum))(kernels), rtol=1e-5)
