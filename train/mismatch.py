"""Sampler against trainer: the same weights give a token slightly different log-probabilities in two programs.

Left alone, on-policy training is off-policy by that much. The difference is measured in every step, and a weight may
correct for it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.train.clipping import Metrics, masked_mean


def truncated_weights(old: Float[Array, "M R"], sampling: Float[Array, "M R"], cap: float) -> Float[Array, "M R"]:
    """Returns min(old / sampling, cap) of each token: importance weights truncated as in IMPALA (arXiv 1802.01561).

    Args:
        old: log-probabilities under the trainer at the weights that wrote the tokens.
        sampling: log-probabilities that the sampler drew them with.
    """
    return jnp.exp(jnp.minimum(old - sampling, jnp.log(cap)))


def mismatch_metrics(old: Float[Array, "M R"], sampling: Float[Array, "M R"], mask: Bool[Array, "M R"]) -> Metrics:
    """Returns how far the two are apart, as (sum, count) pairs.

    `rollout_kl` is KL(sampler || trainer) by the k3 estimator on the sampler's tokens; the absolute difference of
    log-probabilities and its largest value have TRL's names.
    """
    difference = jnp.where(mask, old - sampling, 0)
    apart = jnp.abs(difference)
    return {
        "rollout_kl": masked_mean(jnp.expm1(difference) - difference, mask),
        "sampling/sampling_logp_difference/mean": masked_mean(apart, mask),
        "sampling/sampling_logp_difference/max": (jnp.max(apart, initial=0.0), jnp.ones(())),
    }
