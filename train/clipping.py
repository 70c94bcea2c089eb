"""The clipped objective of PPO (arXiv 1707.06347) with its asymmetric and dual bounds, and what it reports."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.train.loss_config import GRPOLossConfig

Pair = tuple[Float[Array, ""], Float[Array, ""]]
Metrics = dict[str, Pair]


def clipped_objective(
    log_ratio: Float[Array, "M R|1"], advantages: Float[Array, "M 1"], mask: Bool[Array, "M R"], config: GRPOLossConfig
) -> tuple[Float[Array, "M R|1"], Metrics]:
    """PPO's pessimistic objective min(ρA, clip(ρ)A), written as "ρA unless the bound holds".

    Tokens held at a bound get their gradient cut before exp, so an overflowing ratio there cannot turn it into NaN.
    """
    advantages = jax.lax.stop_gradient(advantages.astype(log_ratio.dtype))
    ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
    low = (ratio < config.lower) & (advantages < 0)
    high = (ratio > config.upper) & (advantages > 0)
    dual = (ratio > (config.delta or jnp.inf)) & (advantages < 0)
    held = low | high | dual | (advantages == 0)
    bound = jnp.where(dual, config.delta or 0.0, jnp.clip(ratio, config.lower, config.upper))
    objective = jnp.where(held, bound, jnp.exp(jnp.where(held, 0.0, log_ratio))) * advantages
    rows = mask if log_ratio.shape == mask.shape else jnp.any(mask, axis=-1, keepdims=True)
    return objective, _clip_metrics(low, high, dual, rows, config)


def _clip_metrics(low, high, dual, rows: Bool[Array, "M R|1"], config: GRPOLossConfig) -> Metrics:
    low_share, high_share = masked_mean(low, rows), masked_mean(high, rows)
    metrics = {
        "clip_ratio/low_mean": low_share,
        "clip_ratio/low_min": low_share,
        "clip_ratio/high_mean": high_share,
        "clip_ratio/high_max": high_share,
        "clip_ratio/region_mean": masked_mean(low | high, rows),
    }
    return metrics if config.delta is None else metrics | {"clip_ratio/dual_mean": masked_mean(dual, rows)}


def masked_mean(values: Array, mask: Bool[Array, "..."]) -> Pair:
    """Returns (sum, count) of the masked values, float32."""
    return jnp.sum(jnp.where(mask, values, 0), dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32)
