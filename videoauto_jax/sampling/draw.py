"""From logits to a token and its log-probabilities.

The order is that of transformers: repetition penalty, forced format, temperature, top-k, top-p, min-p. What is switched
off is not computed; that is decided on the device, so that no choice compiles another program.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy; top_k, top_p and min_p then mean nothing.
        top_k: only the most probable so many; 0 for all.
        top_p: of those, the fewest whose probabilities sum up to it; 1 for all.
        min_p: of those, the ones at least so probable relative to the most probable; 0 for all.
        repetition_penalty: divides the positive logits of tokens that occurred and multiplies their negative ones.
        forced: only tokens after which the response can still become well-formed.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    forced: Bool[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One token per branch.

    Attributes:
        token: the token.
        log_prob: under the model.
        penalised_log_prob: after the repetition penalty: what upstream's confidence is computed from.
        sampling_log_prob: under the distribution it was drawn from; at temperature 0 under that of temperature 1.
    """

    token: Int[Array, "B G"]
    log_prob: Float[Array, "B G"]
    penalised_log_prob: Float[Array, "B G"]
    sampling_log_prob: Float[Array, "B G"]


def draw(
    logits: Float[Array, "B G V"],
    seen: Bool[Array, "B G V"],
    allowed: Callable[[], Bool[Array, "B G V"]],
    keys: UInt32[Array, "B G"],
    step: Int[Array, "B G"],
    how: Sampling,
) -> Drawn:
    """Draws by the Gumbel trick. A branch's noise depends on its own key and on how many tokens it has written.

    Args:
        logits: of the model.
        seen: tokens that have occurred, in the prompt or in the branch.
        allowed: tells which tokens keep the response well-formed; called only if that is asked for.
        keys: of the branches.
        step: tokens written.
        how: see `Sampling`.
    """
    warm, safe = how.temperature > 0, jnp.maximum(how.temperature, 1e-6)
    penalty = how.repetition_penalty
    penalise = lambda x: jnp.where(seen, jnp.where(x > 0, x / penalty, x * penalty), x)  # noqa: E731
    penalised = jax.lax.cond(penalty != 1, penalise, lambda x: x, logits)
    open_ = jax.lax.cond(how.forced, lambda x: jnp.where(allowed(), x, -jnp.inf), lambda x: x, penalised)
    scale = jnp.where(warm, safe, 1.0)
    narrow = warm & ((how.top_k > 0) | (how.top_p < 1) | (how.min_p > 0))
    left = jax.lax.cond(narrow, lambda x: jnp.where(_likely(x / scale, how), x, -jnp.inf), lambda x: x, open_)

    def noise() -> Float[Array, "B G V"]:
        one = lambda key, step: jax.random.gumbel(jax.random.fold_in(jax.random.key(key), step), logits.shape[-1:])  # noqa: E731
        return jax.vmap(jax.vmap(one))(keys, step) * safe

    token = jnp.argmax(left + jax.lax.cond(warm, noise, lambda: jnp.zeros_like(logits)), axis=-1)
    log_prob = lambda x: jnp.take_along_axis(x, token[..., None], -1)[..., 0] - jax.nn.logsumexp(x, axis=-1)  # noqa: E731
    return Drawn(token.astype(jnp.int32), log_prob(logits), log_prob(penalised), log_prob(left / scale))


def _likely(scores: Float[Array, "B G V"], how: Sampling) -> Bool[Array, "B G V"]:
    """Tokens within top-k, top-p and min-p. Equal scores stay or go together."""
    ordered = -jnp.sort(-scores, axis=-1)
    size = scores.shape[-1]
    last = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, size), size) - 1
    among = ordered >= jnp.take_along_axis(ordered, jnp.broadcast_to(last, (*ordered.shape[:-1], 1)), axis=-1)
    shares = jax.nn.softmax(jnp.where(among, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    among &= before < jnp.where(how.top_p < 1, how.top_p, jnp.inf)
    least = jnp.min(jnp.where(among, ordered, jnp.inf), axis=-1, keepdims=True)
    relative = ordered[..., :1] + jnp.log(how.min_p)  # -inf where min_p is 0
    return scores >= jnp.maximum(least, relative)
