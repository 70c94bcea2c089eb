"""Log-probabilities of chosen tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def selective_log_softmax(
    logits: Float[Array, "*batch V"], index: Int[Array, "*batch"], *, temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """Returns log softmax(logits / temperature) at `index`, in float32 whatever the type of the logits.

    Upstream keeps bfloat16 here, which rounds -0.4076 to -0.40625 and with it every ratio and KL.
    """
    logits = jnp.asarray(logits)
    scaled = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    chosen = jnp.take_along_axis(scaled, jnp.asarray(index)[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)


def softmax_entropy(logits: Float[Array, "*batch V"], *, temperature: float = 1.0) -> Float[Array, "*batch"]:
    """Returns the entropy of softmax(logits / temperature) in nats, float32; a constant to differentiation."""
    scaled = jax.lax.stop_gradient(jnp.asarray(logits)).astype(jnp.float32) / temperature
    log_probs = scaled - jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
