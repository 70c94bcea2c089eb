"""The policy loss of group-relative optimisation: pure functions of arrays.

One body serves every variant: an importance ratio (per token or per sequence), a clipped objective, an optional mask of
high-entropy tokens, a KL term, and an aggregation. `docs/losses.md` lists the formulas and their papers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.advantages import ADVANTAGES, group_advantages, zero_variance_groups
from videoauto_jax.train.aggregation import LOSS_TYPES
from videoauto_jax.train.clipping import Metrics, clipped_objective, masked_mean
from videoauto_jax.train.kl import KL_ESTIMATORS
from videoauto_jax.train.log_probs import selective_log_softmax
from videoauto_jax.train.loss_config import GRPOLossConfig
from videoauto_jax.train.masks import completion_mask, entropy_quantile, high_entropy_mask
from videoauto_jax.train.mismatch import mismatch_metrics, truncated_weights

__all__ = [
    "ADVANTAGES",
    "KL_ESTIMATORS",
    "LOSS_TYPES",
    "GRPOLossConfig",
    "completion_mask",
    "entropy_quantile",
    "group_advantages",
    "high_entropy_mask",
    "loss_normalizer",
    "policy_loss",
    "selective_log_softmax",
    "zero_variance_groups",
]


def policy_loss(
    log_probs: Float[Array, "M R"],
    old: Float[Array, "M R"] | None,
    ref: Float[Array, "M R"] | None,
    advantages: Float[Array, "M"],
    mask: Bool[Array, "M R"],
    config: GRPOLossConfig,
    *,
    sampling: Float[Array, "M R"] | None = None,
    counted: Bool[Array, "M"] | None = None,
    entropies: Float[Array, "M R"] | None = None,
    entropy_threshold: Float[Array, ""] | None = None,
    normalizer: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss to minimise and its metrics; the gradient flows into `log_probs` only.

    Whatever stands where `mask` is 0 (also NaN) reaches neither the loss nor the gradient.

    Args:
        log_probs: of the sampled tokens under the weights being trained.
        old: under the weights that are importance-corrected for; None means on-policy (ratio 1, with its gradient).
        ref: under the reference; None only if `config.beta` is 0. Given with beta 0 it is only measured.
        advantages: one per completion.
        mask: tokens that count, see `completion_mask`.
        sampling: under the distribution that the sampler drew the tokens from; needed if `config.truncated_importance`
            is set, else only measured.
        counted: completions that take part; the others are as if they had never been written. None: all.
        entropies: of the policy at each token; needed if `config.top_entropy_quantile` < 1.
        entropy_threshold: see `high_entropy_mask`; give it when these rows are a part of a minibatch.
        normalizer: divisor of the sum. Default: `loss_normalizer(mask, config)`. Parts of a minibatch, each with the
            normaliser of the whole, add up to the loss and the gradient of the whole.

    Returns:
        The scalar loss, and metrics as (sum, count) pairs named as upstream's and TRL's: `clip_ratio/low_mean`,
        `low_min`, `high_mean`, `high_max`, `region_mean`; `clip_ratio/dual_mean` with delta; `kl`; `entropy`; with
        `sampling` those of `mismatch.mismatch_metrics`. Here a `_min` or `_max` pair is that of the mean; merging
        minibatches keeps the extreme one (`metrics.merge`).

    Raises:
        ConfigError: ref, sampling, entropies or `config.max_completion_length` are needed and missing, or shapes
            disagree.
    """
    named = {"old": old, "ref": ref, "mask": mask, "sampling": sampling, "entropies": entropies}
    _check_shapes(log_probs, advantages, named)
    _check_needs(ref, sampling, entropies, config)
    mask = counted_tokens(mask, counted)
    log_probs = _cleaned(log_probs, mask)
    old = jax.lax.stop_gradient(log_probs) if old is None else _constant(old, mask)
    token_loss, metrics = _policy_term(log_probs - old, jnp.asarray(advantages)[:, None], mask, config)
    if sampling is not None:
        weight, apart = _sampler_weights(old, _constant(sampling, mask), mask, config)
        token_loss, metrics = weight * token_loss, metrics | apart
    if entropies is not None:
        metrics["entropy"] = masked_mean(_constant(entropies, mask), mask)
    if config.top_entropy_quantile < 1:
        forking = high_entropy_mask(entropies, mask, 1 - config.top_entropy_quantile, threshold=entropy_threshold)
        token_loss = jnp.where(forking, token_loss, 0)
    if ref is not None:
        kl = KL_ESTIMATORS[config.kl_estimator](log_probs, _constant(ref, mask))
        metrics["kl"] = masked_mean(jax.lax.stop_gradient(kl), mask)
        token_loss = token_loss + config.beta * kl if config.beta else token_loss
    total = jnp.sum(LOSS_TYPES[config.loss_type].weights(mask) * token_loss)
    normalizer = loss_normalizer(mask, config, counted=counted) if normalizer is None else normalizer
    return total / jnp.where(jnp.equal(normalizer, 0), 1, normalizer), metrics


def loss_normalizer(
    mask: Bool[Array, "M R"], config: GRPOLossConfig, *, counted: Bool[Array, "M"] | None = None
) -> Float[Array, ""]:
    """Returns the divisor for these completions: M (grpo), their tokens (bnpo, dapo) or M · max length (dr_grpo).

    It is additive over parts. M is the number of `counted` completions, by default all rows of the mask.

    Raises:
        ConfigError: dr_grpo without `config.max_completion_length`.
    """
    if LOSS_TYPES[config.loss_type].needs_length and config.max_completion_length is None:
        raise ConfigError(f"{config.loss_type} divides by max_completion_length", fix="Set max_completion_length")
    completions = jnp.float32(mask.shape[0]) if counted is None else jnp.sum(counted, dtype=jnp.float32)
    aggregation = LOSS_TYPES[config.loss_type]
    return aggregation.normalizer(counted_tokens(mask, counted), config.max_completion_length, completions)


def counted_tokens(mask: Bool[Array, "M R"], counted: Bool[Array, "M"] | None) -> Bool[Array, "M R"]:
    """Returns the tokens of the completions that take part."""
    mask = jnp.asarray(mask).astype(bool)
    return mask if counted is None else mask & jnp.asarray(counted, bool)[:, None]


def _policy_term(log_ratio, advantages, mask, config: GRPOLossConfig) -> tuple[Float[Array, "M R|1"], Metrics]:
    if config.importance_sampling_level == "sequence":
        log_ratio = jnp.sum(log_ratio, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    objective, metrics = clipped_objective(log_ratio, advantages, mask, config)
    return -objective, metrics


def _sampler_weights(old, sampling, mask, config: GRPOLossConfig) -> tuple[Float[Array, "M R"] | float, Metrics]:
    cap = config.truncated_importance
    weight = 1.0 if cap is None else truncated_weights(old, sampling, cap)
    return weight, mismatch_metrics(old, sampling, mask)


def _cleaned(values: Float[Array, "M R"], mask: Bool[Array, "M R"]) -> Float[Array, "M R"]:
    values = jnp.asarray(values)
    return jnp.where(mask, values.astype(jnp.promote_types(values.dtype, jnp.float32)), 0)


def _constant(values: Float[Array, "M R"], mask: Bool[Array, "M R"]) -> Float[Array, "M R"]:
    return jax.lax.stop_gradient(_cleaned(values, mask))


def _check_shapes(log_probs, advantages, named: dict) -> None:
    shape = jnp.shape(log_probs)
    wrong = {name: jnp.shape(array) for name, array in named.items() if array is not None and jnp.shape(array) != shape}
    if len(shape) != 2 or jnp.shape(advantages) != shape[:1]:
        wrong["advantages"] = jnp.shape(advantages)
    if wrong:
        found = ", ".join(f"{name} {found}" for name, found in wrong.items())
        raise ConfigError(
            f"policy_loss got log_probs {shape} but {found}",
            fix="Everything is [M, R], completions by tokens, and advantages [M]",
        )


def _check_needs(ref, sampling, entropies, config: GRPOLossConfig) -> None:
    if config.beta and ref is None:
        raise ConfigError(f"beta is {config.beta} but there are no reference log-probs", fix="Pass ref, or set beta: 0")
    if config.truncated_importance is not None and sampling is None:
        raise ConfigError(
            f"truncated_importance is {config.truncated_importance} but the sampler's log-probs are missing",
            fix="Pass sampling, or leave truncated_importance out",
        )
    if config.top_entropy_quantile < 1 and entropies is None:
        raise ConfigError(
            f"top_entropy_quantile is {config.top_entropy_quantile} but there are no entropies",
            fix="Pass entropies, or set top_entropy_quantile: 1.0",
        )
