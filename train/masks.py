"""Which tokens of a completion count."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def completion_mask(
    token_ids: Int[Array, "M R"], eos_ids: Sequence[int] | Int[Array, "E"], *, lengths: Int[Array, "M"] | None = None
) -> Bool[Array, "M R"]:
    """Marks each completion up to and including its first stop token; a completion without one counts in full.

    Give every stop token of the checkpoint's generation_config. Upstream knows the tokenizer's eos alone
    (`eos_ids=[151645]`), so there a completion that ended with `<|endoftext|>` also counts all of its padding.

    Args:
        token_ids: right-padded completions. The pad token is never looked for: it may be a stop token itself.
        eos_ids: stop tokens; an array may be traced.
        lengths: generated tokens per completion, for one that was cut off before a stop token in fewer than R tokens.
    """
    token_ids = jnp.asarray(token_ids)
    stops = jnp.isin(token_ids, jnp.asarray(eos_ids, token_ids.dtype))
    earlier_stops = jnp.cumsum(stops, axis=-1) - stops
    mask = earlier_stops == 0
    if lengths is None:
        return mask
    return mask & (jnp.arange(token_ids.shape[-1]) < jnp.asarray(lengths)[:, None])


def entropy_quantile(entropies: Float[Array, "M R"], mask: Bool[Array, "M R"], quantile: float) -> Float[Array, ""]:
    """Returns the `quantile` (linear interpolation, float32 as torch.quantile) of the entropies of the masked tokens.

    Without any masked token it is infinite. Compute it over the whole minibatch when the loss is summed in parts.
    """
    values = jnp.sort(jnp.where(mask, jnp.asarray(entropies, jnp.float32), jnp.inf), axis=None)
    last = jnp.maximum(jnp.sum(jnp.asarray(mask, bool)) - 1, 0)
    rank = jnp.float32(quantile) * last.astype(jnp.float32)
    below = jnp.floor(rank).astype(jnp.int32)
    low, high = values[below], values[jnp.minimum(below + 1, last)]
    share = rank - below
    return jnp.where(high > low, _interpolate(low, high, share), low)


def high_entropy_mask(
    entropies: Float[Array, "M R"],
    mask: Bool[Array, "M R"],
    quantile: float,
    *,
    threshold: Float[Array, ""] | None = None,
) -> Bool[Array, "M R"]:
    """Marks the masked tokens at or above the `quantile` of entropy: the forking tokens (arXiv 2506.01939).

    Args:
        quantile: 1 - `top_entropy_quantile`; 0 keeps every masked token.
        threshold: the value at that quantile, if it was taken over more than these rows.
    """
    mask = jnp.asarray(mask, bool)
    if threshold is None:
        threshold = entropy_quantile(entropies, mask, quantile)
    return mask & (jnp.asarray(entropies, jnp.float32) >= threshold)


def _interpolate(low: Float[Array, ""], high: Float[Array, ""], share: Float[Array, ""]) -> Float[Array, ""]:
    # Anchored at the nearer end, so that an exact rank returns that value and a token equal to it is kept.
    return jnp.where(share < 0.5, low + share * (high - low), high - (high - low) * (1 - share))
