"""From logits to a token and its log-probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token per branch.

    Attributes:
        token: the token.
        log_prob: under the model.
        sampling_log_prob: under the distribution it was drawn from.
    """

    token: Int[Array, "B G"]
    log_prob: Float[Array, "B G"]
    sampling_log_prob: Float[Array, "B G"]


def draw(
    logits: Float[Array, "B G V"], keys: UInt32[Array, "B G"], step: Int[Array, "B G"], temperature: Float[Array, ""]
) -> Drawn:
    """Draws by the Gumbel trick. A branch's noise depends on its own key and on how many tokens it has written."""
    safe = jnp.maximum(temperature, 1e-6)

    def noise() -> Float[Array, "B G V"]:
        one = lambda key, step: jax.random.gumbel(jax.random.fold_in(jax.random.key(key), step), logits.shape[-1:])  # noqa: E731
        return jax.vmap(jax.vmap(one))(keys, step) * safe

    token = jnp.argmax(logits + jax.lax.cond(temperature > 0, noise, lambda: jnp.zeros_like(logits)), axis=-1)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
    tempered = chosen / safe - jax.nn.logsumexp(logits / safe, axis=-1)
    return Drawn(token.astype(jnp.int32), log_prob, jnp.where(temperature > 0, tempered, log_prob))
