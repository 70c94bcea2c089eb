"""The optimiser against AdamW's formula in float64 (arXiv 1711.05101), its schedules, and steps that are not finite."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.optimizer import (
    OptimizerConfig,
    grad_norm,
    learning_rate_schedule,
    make_optimizer,
    nonfinite_count,
    nonfinite_streak,
    step_count,
)

PATHS = ("kernel", "norm")


def _params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(3, 4)), dtype) for name in PATHS}


def _gradients(steps):
    rng = np.random.default_rng(1)
    return [{name: jnp.asarray(rng.normal(0, 3, (3, 4)), jnp.float32) for name in PATHS} for _ in range(steps)]


def _run(config, params, gradients, total_steps=10):
    optimizer = make_optimizer(config, params, total_steps)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _adamw(params, gradients, config, rates):
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    first, second = (dict.fromkeys(PATHS, 0.0) for _ in range(2))
    for step, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        gradient = {name: np.asarray(value, np.float64) for name, value in gradient.items()}
        norm = math.sqrt(sum(np.sum(value**2) for value in gradient.values()))
        for name in PATHS:
            clipped = gradient[name] * min(1.0, config.max_grad_norm / norm)
            first[name] = config.b1 * first[name] + (1 - config.b1) * clipped
            second[name] = config.b2 * second[name] + (1 - config.b2) * clipped**2
            direction = first[name] / (1 - config.b1**step)
            direction = direction / (np.sqrt(second[name] / (1 - config.b2**step)) + config.eps)
            decay = config.weight_decay * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - rate * (direction + decay)
    return params


def test_is_adamw_with_clipping_and_masked_decay():
    config = OptimizerConfig(learning_rate=0.03, schedule="linear", warmup_steps=2, weight_decay=0.5, max_grad_norm=2.0)
    gradients = _gradients(5)
    params, state = _run(config, _params(), gradients)
    rates = [0.0, 0.015, 0.03, 0.03 * 7 / 8, 0.03 * 6 / 8]
    for name, expected in _adamw(_params(), gradients, config, rates).items():
        np.testing.assert_allclose(params[name], expected, atol=1e-6)
    np.testing.assert_allclose(grad_norm(state), optax.tree.norm(gradients[-1]), rtol=1e-6)
    assert step_count(state) == 5


def test_is_torch_adamw():
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.1)
    gradients = _gradients(6)
    theirs = {name: torch.tensor(np.array(value), requires_grad=True) for name, value in _params().items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": 0.1}, {"params": [theirs["norm"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    for gradient in gradients:
        for name, value in theirs.items():
            value.grad = torch.tensor(np.array(gradient[name]))
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
    ours, _ = _run(config, _params(), gradients)
    for name in PATHS:
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedule(schedule, warmup):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup)
    rate = learning_rate_schedule(config, 11)
    for step in range(11):
        done = (step - warmup) / (11 - warmup)
        after = {"constant": 2.0, "linear": 2.0 * (1 - done), "cosine": 1 + math.cos(math.pi * done)}[schedule]
        np.testing.assert_allclose(rate(step), 2.0 * step / warmup if step < warmup else after, atol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_step_that_is_not_finite_changes_nothing_and_counts(bad):
    first, second, third = _gradients(3)
    broken = first | {"norm": first["norm"].at[0, 0].set(bad)}
    config = OptimizerConfig(learning_rate=0.1, schedule="linear")
    params, state = _run(config, _params(), [first, broken, broken, second, third])
    expected, _ = _run(config, _params(), [first, second, third])
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert (step_count(state), nonfinite_count(state), nonfinite_streak(state)) == (3, 2, 0)
    _, state = _run(config, _params(), [first, broken, broken])
    assert nonfinite_streak(state) == 2 and not np.isfinite(grad_norm(state))


def test_skipping_can_be_switched_off():
    broken = jax.tree.map(lambda value: value * jnp.nan, _gradients(1)[0])
    params, state = _run(OptimizerConfig(skip_nonfinite=False), _params(), [broken])
    assert np.isnan(params["kernel"]).all() and nonfinite_count(state) == 1


def test_state_is_float32_for_bfloat16_weights():
    params, state = _run(OptimizerConfig(), _params(jnp.bfloat16), _gradients(1))
    assert params["kernel"].dtype == jnp.bfloat16
    floats = [leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "adam"}, "Did you mean adamw"),
        ({"schedule": "cosin"}, "Did you mean cosine"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"b2": 1.0}, "b2"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        OptimizerConfig(**settings)


def test_warmup_longer_than_the_run_is_named():
    with pytest.raises(ConfigError, match="warmup_steps is 20 in a run of 10"):
        make_optimizer(OptimizerConfig(warmup_steps=20), _params(), 10)
