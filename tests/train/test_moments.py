"""Small moments and Adafactor: against AdamW with float32 moments, the formula of arXiv 1804.04235, and their size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videoauto_jax.train.moments import load, store
from videoauto_jax.train.optimizer import OptimizerConfig, make_optimizer

SHAPE = (4, 256)


def _descend(config, steps, params=None):
    """Parameters after steps on a quadratic whose curvatures span four decades, with noisy gradients."""
    rng = np.random.default_rng(0)
    curvature = jnp.asarray(10.0 ** rng.uniform(-2, 2, SHAPE), jnp.float32)
    params = params or {"kernel": jnp.asarray(rng.normal(size=SHAPE), jnp.float32)}
    optimizer = make_optimizer(config, params, steps + 1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(steps):
        noise = jnp.asarray(rng.normal(0, 0.1, SHAPE), jnp.float32)
        updates, state = update({"kernel": curvature * (params["kernel"] + noise)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"]), state


@pytest.mark.parametrize(("moments", "distance"), [("bfloat16", 0.01), ("int8", 0.2)])
def test_small_moments_follow_the_large_ones(moments, distance):
    config = OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.0)
    start, _ = _descend(config, 0)
    exact, _ = _descend(config, 100)
    small, state = _descend(OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.0, moments=moments), 100)
    moved = np.linalg.norm(exact - start)
    assert np.linalg.norm(small - exact) < distance * moved
    again, _ = _descend(OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.0, moments=moments), 100)
    np.testing.assert_array_equal(small, again)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size > 1)
    per_parameter = size / np.prod(SHAPE)
    assert per_parameter == {"bfloat16": 4, "int8": 2 * (1 + 4 / 128)}[moments]


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_rounding_is_right_on_average(moments):
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.normal(size=SHAPE) * 10.0 ** rng.uniform(-1, 0, SHAPE), jnp.float32)
    for signed, exact in ((True, values), (False, jnp.square(values))):
        keys = jax.random.split(jax.random.key(0), 400)
        many = jax.vmap(lambda key: load(store(exact, moments, key, signed=signed), signed=signed))(keys)  # noqa: B023
        error = np.abs(np.mean(np.asarray(many, np.float64), 0) - np.asarray(exact))
        assert error.max() < 2e-3 * np.abs(exact).max() and np.std(many, 0).max() > 0


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_a_second_moment_decays(moments):
    """Rounded to the nearest it would stand still: a thousandth is less than half a step of either type."""
    value = jnp.ones((1, 128)) * jnp.linspace(0.3, 1, 128)
    stored = store(value, moments, jax.random.key(0), signed=False)
    for step in range(300):
        stored = store(0.999 * load(stored, signed=False), moments, jax.random.key(step), signed=False)
    left = np.mean(load(stored, signed=False)) / np.mean(value)
    assert left == pytest.approx(0.999**300, rel=0.05)


def test_zero_stays_zero_and_nothing_small_divides_by_nothing():
    value = jnp.zeros((2, 128)).at[0, 0].set(1.0).at[0, 1].set(1e-20)
    loaded = load(store(value, "int8", jax.random.key(0), signed=False), signed=False)
    assert loaded[0, 0] == 1 and loaded[0, 1] > 0 and not loaded[1].any() and not loaded[0, 2:].any()


def test_is_adafactor():
    config = OptimizerConfig(kind="adafactor", learning_rate=0.1, weight_decay=0.01, max_grad_norm=0.0)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(128, 192)), jnp.float32)}
    optimizer = make_optimizer(config, params, 9)
    state, expected = optimizer.init(params), np.asarray(params["kernel"], np.float64)
    rows, columns = np.zeros(128), np.zeros(192)
    for step in range(1, 4):
        grad = rng.normal(size=(128, 192)).astype(np.float32)
        updates, state = optimizer.update({"kernel": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        decay = 1 - step**-0.8
        square = grad.astype(np.float64) ** 2 + 1e-30
        rows = decay * rows + (1 - decay) * square.mean(1)
        columns = decay * columns + (1 - decay) * square.mean(0)
        direction = grad / np.sqrt(np.outer(rows, columns) / rows.mean())
        direction /= max(1, np.sqrt(np.mean(direction**2)))
        expected = expected - 0.1 * (direction + 0.01 * expected)
    np.testing.assert_allclose(params["kernel"], expected, atol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 400  # of 24,576 parameters
