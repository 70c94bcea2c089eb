"""Every loss variant against its paper's formula, written with loops in float64; gradients by central differences.

Clipping: PPO 1707.06347. Completion mean and k3: GRPO 2402.03300. Token mean and clip-higher: DAPO 2503.14476 (bnpo is
TRL's name for the token mean of one batch). Constant length: Dr. GRPO 2503.20783. Dual clip: 1912.09729. Sequence
ratio: GSPO 2507.18071. High-entropy tokens: 2506.01939. KL estimators: Schulman 2020. Truncated weights: IMPALA
1802.01561.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.train.grpo import GRPOLossConfig, policy_loss

MAX_LENGTH = 11


def _kl(name, new, ref):
    difference = ref - new
    return {
        "k1": -difference,
        "k2": difference**2 / 2,
        "k3": math.exp(difference) - difference - 1,
        "k3_straight_through": math.exp(difference) - difference - 1,
    }[name]


def _objective(ratio, advantage, config):
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    clipped = min(max(ratio, 1 - config.epsilon), 1 + high)
    objective = min(ratio * advantage, clipped * advantage)
    if config.delta is not None and advantage < 0:
        objective = max(objective, config.delta * advantage)
    return objective


def _formula(new, old, ref, sampling, advantages, lengths, entropies, config):
    valid = [entropies[i, t] for i, length in enumerate(lengths) for t in range(length)]
    threshold = np.quantile(np.array(valid), 1 - config.top_entropy_quantile)
    completions = []
    for i, length in enumerate(lengths):
        log_ratios = [new[i, t] - old[i, t] for t in range(length)]
        if config.importance_sampling_level == "sequence":
            log_ratios = [sum(log_ratios) / length] * length
        tokens = []
        for t in range(length):
            policy = -_objective(math.exp(log_ratios[t]), advantages[i], config)
            policy *= entropies[i, t] >= threshold
            if config.truncated_importance is not None:
                policy *= min(math.exp(old[i, t] - sampling[i, t]), config.truncated_importance)
            tokens.append(policy + config.beta * _kl(config.kl_estimator, new[i, t], ref[i, t]))
        completions.append(tokens)
    if config.loss_type == "grpo":
        return np.mean([np.mean(tokens) for tokens in completions])
    total = sum(itertools.chain(*completions))
    return total / (len(lengths) * MAX_LENGTH if config.loss_type == "dr_grpo" else sum(lengths))


def _differences(formula, new, lengths, step=1e-6):
    grad = np.zeros_like(new)
    for i, length in enumerate(lengths):
        for t in range(length):
            up, down = new.copy(), new.copy()
            up[i, t] += step
            down[i, t] -= step
            grad[i, t] = (formula(up) - formula(down)) / (2 * step)
    return grad


VARIANTS = [
    *({"loss_type": kind, "importance_sampling_level": level}
      for kind in ("grpo", "bnpo", "dapo", "dr_grpo") for level in ("token", "sequence")),
    *({"kl_estimator": name, "beta": 0.3} for name in ("k1", "k2", "k3", "k3_straight_through")),
    {"epsilon": 0.1, "epsilon_high": 0.28, "loss_type": "dapo", "beta": 0.0},
    {"delta": 1.6},
    {"delta": 1.6, "importance_sampling_level": "sequence", "epsilon": 3e-2, "epsilon_high": 4e-2},
    {"top_entropy_quantile": 0.2, "loss_type": "dapo"},
    {"top_entropy_quantile": 0.7, "importance_sampling_level": "sequence"},
    {"truncated_importance": 1.2},
    {"truncated_importance": 0.9, "importance_sampling_level": "sequence", "loss_type": "dapo"},
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: ",".join(map(str, variant.values())))
def test_variant_is_its_formula(variant):
    rng = np.random.default_rng(VARIANTS.index(variant))
    config = GRPOLossConfig(**{"beta": 0.05, "max_completion_length": MAX_LENGTH} | variant)
    new, old, ref, sampling = (rng.normal(-1.0, 0.45, (4, 6)) for _ in range(4))
    advantages, entropies = rng.normal(size=4), rng.uniform(0, 2, (4, 6))
    lengths = [6, 3, 1, 5]
    mask = np.arange(6) < np.array(lengths)[:, None]

    def ours(x):
        arrays = map(jnp.float32, (old, ref, advantages))
        others = {"entropies": jnp.float32(entropies), "sampling": jnp.float32(sampling)}
        return policy_loss(x, *arrays, mask, config, **others)[0]

    loss, grad = jax.value_and_grad(ours)(jnp.float32(new))

    def formula(x, settings=config):
        return _formula(x, old, ref, sampling, advantages, lengths, entropies, settings)

    np.testing.assert_allclose(loss, formula(new), atol=2e-6)
    slope = config
    if config.kl_estimator == "k3_straight_through":  # value of k3, gradient of k2
        slope = GRPOLossConfig(**variant | {"kl_estimator": "k2", "max_completion_length": MAX_LENGTH})
    np.testing.assert_allclose(grad, _differences(lambda x: formula(x, slope), new, lengths), atol=2e-6)


def test_straight_through_gradient_is_that_of_the_divergence():
    # Over all tokens of a softmax policy, weighted by probability, the k2 gradient is the exact gradient of KL(p ‖ q).
    logits, other = (jnp.float32(np.random.default_rng(seed).normal(size=7)) for seed in (0, 1))
    ref = jax.nn.log_softmax(other)
    weights = jax.nn.softmax(logits)
    config = GRPOLossConfig(beta=1.0, kl_estimator="k3_straight_through", loss_type="bnpo")

    def of_one_token(log_prob, ref):
        one = jnp.ones((1, 1))
        return policy_loss(log_prob * one, None, ref * one, jnp.zeros(1), one, config)[0]

    def sampled(x):
        return weights @ jax.vmap(of_one_token)(jax.nn.log_softmax(x), ref)

    def exact(x):
        return jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - ref))

    np.testing.assert_allclose(jax.jit(jax.grad(sampled))(logits), jax.jit(jax.grad(exact))(logits), atol=1e-6)
    np.testing.assert_allclose(jax.jit(sampled)(logits), exact(logits), atol=1e-6)
