"""The policy loss against executed rows of the published trainer, and what every variant must hold."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.grpo import LOSS_TYPES, GRPOLossConfig, entropy_quantile, loss_normalizer, policy_loss

CASES = json.loads((Path(__file__).parents[1] / "data" / "grpo_cases.json").read_text())
INPUTS = CASES["inputs"]
ROWS = CASES["rows"]


def _array(name):
    return jnp.asarray(INPUTS[name], jnp.float32)


def _random(seed, rows=4, length=6):
    rng = np.random.default_rng(seed)
    new, old, ref = (jnp.asarray(rng.normal(-1, 0.5, (rows, length)), jnp.float32) for _ in range(3))
    mask = np.arange(length) < rng.integers(1, length + 1, (rows, 1))
    return new, old, ref, jnp.asarray(rng.normal(size=rows), jnp.float32), jnp.asarray(mask)


def _loss_and_grad(log_probs, *arrays, config, **options):
    return jax.value_and_grad(lambda new: policy_loss(new, *arrays, config, **options)[0])(log_probs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(str(row[key]) for key in list(row)[:5]))
def test_published_rows(row):
    keys = ("loss_type", "importance_sampling_level", "beta", "top_entropy_quantile")
    length = INPUTS["max_completion_length"]
    config = GRPOLossConfig(**{key: row[key] for key in keys}, epsilon=INPUTS["epsilon"], max_completion_length=length)
    old = _array("old_logps") if row["old_logps_given"] else None
    arrays = (old, _array("ref_logps") if row["beta"] else None, _array("advantages"), _array("mask"), config)

    def loss_of(new):
        return policy_loss(new, *arrays, entropies=_array("entropies"))

    (loss, metrics), grad = jax.value_and_grad(loss_of, has_aux=True)(_array("new_logps"))
    np.testing.assert_allclose(loss, row["loss"], atol=2e-7)
    np.testing.assert_allclose(grad, row["grad_wrt_new_logps"], atol=2e-7)
    for name, (expected,) in row["metrics"].items():
        total, count = metrics[name]
        np.testing.assert_allclose(total / count, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_parts_add_up_to_the_whole(loss_type, level):
    config = GRPOLossConfig(
        loss_type=loss_type,
        importance_sampling_level=level,
        max_completion_length=9,
        top_entropy_quantile=0.6,
    )
    arrays = _random(0)
    entropies = jnp.asarray(np.random.default_rng(1).uniform(size=arrays[0].shape), jnp.float32)
    whole, whole_grad = _loss_and_grad(*arrays, config=config, entropies=entropies)
    threshold = entropy_quantile(entropies, arrays[-1], 0.4)
    shared = {"normalizer": loss_normalizer(arrays[-1], config), "entropy_threshold": threshold}
    parts = [
        _loss_and_grad(*(array[cut] for array in arrays), config=config, entropies=entropies[cut], **shared)
        for cut in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([grad for _, grad in parts]), whole_grad, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_may_hold_anything(level):
    config = GRPOLossConfig(importance_sampling_level=level, top_entropy_quantile=0.5)
    new, old, ref, advantages, mask = _random(2)
    entropies = jnp.abs(ref)
    clean = _loss_and_grad(new, old, ref, advantages, mask, config=config, entropies=entropies)
    junk = [jnp.where(mask, array, value) for array, value in zip((new, old, ref), (jnp.nan, jnp.inf, -jnp.inf))]
    dirty = _loss_and_grad(*junk, advantages, mask, config=config, entropies=jnp.where(mask, entropies, jnp.nan))
    np.testing.assert_array_equal(dirty[0], clean[0])
    np.testing.assert_array_equal(dirty[1], clean[1])
    assert not np.any(np.asarray(dirty[1])[~np.asarray(mask)])


def test_ratio_that_overflows_is_held_at_its_bound():
    config = GRPOLossConfig(beta=0.0, delta=3.0)
    new, old = jnp.full((4, 6), -0.1), jnp.full((4, 6), -500.0)
    advantages = jnp.array([1.0, -1.0, 0.0, 2.0])
    loss, grad = _loss_and_grad(new, old, None, advantages, jnp.ones((4, 6)), config=config)
    np.testing.assert_allclose(loss, (-1.2 + 3.0 + 0.0 - 2.4) / 4, rtol=1e-6)
    np.testing.assert_array_equal(grad, np.zeros((4, 6)))


def test_minibatch_without_tokens_is_zero():
    new, old, ref, advantages, mask = _random(3)
    for loss_type in LOSS_TYPES:
        config = GRPOLossConfig(loss_type=loss_type, max_completion_length=5)
        loss, grad = _loss_and_grad(new, old, ref, advantages, jnp.zeros_like(mask), config=config)
        assert loss == 0 and not np.any(grad)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_completions_that_do_not_count_might_never_have_been_written(loss_type):
    config = GRPOLossConfig(loss_type=loss_type, max_completion_length=5, truncated_importance=1.1)
    arrays, kept = _random(7), np.array([True, False, True, False])
    options = {"config": config, "sampling": arrays[1] + 0.1}
    loss, grad = _loss_and_grad(*arrays, counted=jnp.asarray(kept), **options)
    alone = {"config": config, "sampling": options["sampling"][kept]}
    expected, expected_grad = _loss_and_grad(*(array[kept] for array in arrays), **alone)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad[kept], expected_grad, rtol=1e-6)
    assert not np.any(grad[~kept])
    loss, grad = _loss_and_grad(*arrays, counted=jnp.zeros(4, bool), **options)
    assert loss == 0 and not np.any(grad)


def test_the_sampler_is_measured():
    new, old, ref, advantages, mask = _random(8)
    sampling = old + jnp.asarray(np.random.default_rng(0).normal(0, 0.1, old.shape), jnp.float32)
    _, metrics = policy_loss(new, old, ref, advantages, mask, GRPOLossConfig(), sampling=sampling)
    found = {name: float(total / count) for name, (total, count) in metrics.items()}
    apart = np.asarray(old - sampling, np.float64)[np.asarray(mask)]
    assert found["rollout_kl"] == pytest.approx(np.mean(np.exp(apart) - 1 - apart), rel=1e-4)
    assert found["sampling/sampling_logp_difference/mean"] == pytest.approx(np.abs(apart).mean(), rel=1e-5)
    assert found["sampling/sampling_logp_difference/max"] == pytest.approx(np.abs(apart).max(), rel=1e-5)


def test_bfloat16_log_probs_are_computed_in_float32():
    new, old, ref, advantages, mask = _random(4)
    new, old, ref = (array.astype(jnp.bfloat16) for array in (new, old, ref))
    widened = (array.astype(jnp.float32) for array in (new, old, ref))
    loss, _ = policy_loss(new, old, ref, advantages, mask, GRPOLossConfig())
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, policy_loss(*widened, advantages, mask, GRPOLossConfig())[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "grop"}, "Did you mean grpo"),
        ({"kl_estimator": "k4"}, "k3_straight_through"),
        ({"loss_type": "dr_grpo", "max_completion_length": 0}, "max_completion_length"),
        ({"importance_sampling_level": "word"}, "token or sequence"),
        ({"beta": -0.1}, "beta"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"delta": 1.1}, "delta"),
        ({"top_entropy_quantile": 0.0}, "top_entropy_quantile"),
        ({"truncated_importance": 0.0}, "truncated_importance"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        GRPOLossConfig(**settings)


def test_missing_and_misshapen_arrays_are_named():
    new, old, ref, advantages, mask = _random(5)
    with pytest.raises(ConfigError, match="reference"):
        policy_loss(new, old, None, advantages, mask, GRPOLossConfig())
    with pytest.raises(ConfigError, match="entropies"):
        policy_loss(new, old, ref, advantages, mask, GRPOLossConfig(top_entropy_quantile=0.2))
    with pytest.raises(ConfigError, match="sampler's log-probs"):
        policy_loss(new, old, ref, advantages, mask, GRPOLossConfig(truncated_importance=2.0))
    with pytest.raises(ConfigError, match="dr_grpo divides by max_completion_length"):
        policy_loss(new, old, ref, advantages, mask, GRPOLossConfig(loss_type="dr_grpo"))
    with pytest.raises(ConfigError, match="old"):
        policy_loss(new, old[:, :2], ref, advantages, mask, GRPOLossConfig())
    with pytest.raises(ConfigError, match="advantages"):
        policy_loss(new, old, ref, advantages[:, None], mask, GRPOLossConfig())


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_completions_spread_over_devices_are_the_same(loss_type):
    config = GRPOLossConfig(loss_type=loss_type)
    arrays = _random(6)
    mesh = jax.make_mesh((4,), ("data",))
    spread = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P("data")))
    loss, grad = jax.jit(lambda *given: _loss_and_grad(*given, config=config))(*spread)
    expected, expected_grad = _loss_and_grad(*arrays, config=config)
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-6)
