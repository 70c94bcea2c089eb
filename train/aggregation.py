"""How token losses become one number: a weight per token and one normaliser.

loss = Σ weight · token loss / normaliser. The sum may be taken in parts (microbatches, devices); with the normaliser of
the whole it is the same loss and the same gradient.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.train.registry import Registry


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """One loss type.

    Attributes:
        weights: mask -> weight of every token; masked tokens get 0.
        normalizer: (mask, max_completion_length, completions) -> divisor for the rows of that mask, of which
            `completions` count; additive over parts.
        needs_length: the normaliser uses `max_completion_length`.
    """

    weights: Callable[[Bool[Array, "M R"]], Float[Array, "M R"]]
    normalizer: Callable[[Bool[Array, "M R"], int | None, Float[Array, ""]], Float[Array, ""]]
    needs_length: bool = False


LOSS_TYPES: Registry[Aggregation] = Registry("loss_type")


def _per_token(mask: Bool[Array, "M R"]) -> Float[Array, "M R"]:
    return mask.astype(jnp.float32)


def _per_completion(mask: Bool[Array, "M R"]) -> Float[Array, "M R"]:
    return mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(jnp.float32)


def _completions(mask: Bool[Array, "M R"], length: int | None, completions: Float[Array, ""]) -> Float[Array, ""]:
    del mask, length
    return completions


def _tokens(mask: Bool[Array, "M R"], length: int | None, completions: Float[Array, ""]) -> Float[Array, ""]:
    del length, completions
    return jnp.sum(mask, dtype=jnp.float32)


def _slots(mask: Bool[Array, "M R"], length: int | None, completions: Float[Array, ""]) -> Float[Array, ""]:
    del mask
    return completions * length


LOSS_TYPES.register("grpo")(Aggregation(_per_completion, _completions))
LOSS_TYPES.register("bnpo")(Aggregation(_per_token, _tokens))
LOSS_TYPES.register("dapo")(Aggregation(_per_token, _tokens))
LOSS_TYPES.register("dr_grpo")(Aggregation(_per_token, _slots, needs_length=True))
