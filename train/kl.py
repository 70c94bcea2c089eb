"""Estimators of KL(policy ‖ reference) from the sampled token alone.

Names and values: J. Schulman, "Approximating KL Divergence", 2020. Gradients: Tang and Munos, arXiv 2506.09477.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videoauto_jax.train.registry import Registry

Estimator = Callable[[Float[Array, "*shape"], Float[Array, "*shape"]], Float[Array, "*shape"]]

KL_ESTIMATORS: Registry[Estimator] = Registry("KL estimator")
"""Functions of (policy log-probs, reference log-probs), element by element."""


@KL_ESTIMATORS.register("k1")
def k1(log_probs: Float[Array, "*shape"], ref: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Unbiased in value; as a loss term its expected on-policy gradient is zero: variance, and no restraint."""
    return log_probs - ref


@KL_ESTIMATORS.register("k2")
def k2(log_probs: Float[Array, "*shape"], ref: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Biased in value; its on-policy gradient is the gradient of the KL divergence."""
    return 0.5 * jnp.square(log_probs - ref)


@KL_ESTIMATORS.register("k3")
def k3(log_probs: Float[Array, "*shape"], ref: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Unbiased, never negative, low variance: the term of GRPO (arXiv 2402.03300, eq. 4)."""
    difference = ref - log_probs
    # expm1 keeps the digits that exp(d) - d - 1 cancels away while policy and reference are still close.
    return jnp.expm1(difference) - difference


@KL_ESTIMATORS.register("k3_straight_through")
def k3_straight_through(log_probs: Float[Array, "*shape"], ref: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The value of k3 with the gradient of k2, which is that of the divergence itself."""
    gradient = k2(log_probs, ref)
    return gradient + jax.lax.stop_gradient(k3(log_probs, ref) - gradient)
