"""How good a branch is among the branches of its own prompt."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.registry import Registry

Advantage = Callable[[Float[Array, "N G"], float], Float[Array, "N G"]]

ADVANTAGES: Registry[Advantage] = Registry("advantage")
"""Functions of (rewards minus their group mean `[N, G]`, epsilon)."""


@ADVANTAGES.register("group_std")
def _group_std(centred: Float[Array, "N G"], epsilon: float) -> Float[Array, "N G"]:
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (centred.shape[-1] - 1)
    return centred / (jnp.sqrt(variance) + epsilon)


@ADVANTAGES.register("no_std")
def _no_std(centred: Float[Array, "N G"], epsilon: float) -> Float[Array, "N G"]:
    del epsilon
    return centred


@ADVANTAGES.register("leave_one_out")
def _leave_one_out(centred: Float[Array, "N G"], epsilon: float) -> Float[Array, "N G"]:
    # r_i - mean of the others = (r_i - mean of all) * G / (G - 1).
    del epsilon
    size = centred.shape[-1]
    return centred * (size / (size - 1))


def group_advantages(
    rewards: Float[Array, "M"], group_size: int, *, kind: str = "group_std", epsilon: float = 1e-4
) -> Float[Array, "M"]:
    """Returns the advantage of every branch; branches of one prompt are consecutive.

    A group whose rewards are all equal gets exactly zero, whatever the rounding of its mean.

    Args:
        rewards: weighted totals.
        group_size: G, branches per prompt.
        kind: `group_std`: (r - mean) / (std + epsilon), std with Bessel's correction (GRPO, arXiv 2402.03300);
            `no_std`: r - mean (Dr. GRPO, arXiv 2503.20783);
            `leave_one_out`: r - mean of the others (RLOO, arXiv 2402.14740).
        epsilon: keeps `group_std` finite.

    Returns:
        float32 (float64 for float64 rewards).

    Raises:
        ConfigError: unknown kind, fewer than two branches per group, or rewards that do not fill whole groups.
    """
    centred = _centred(_grouped(rewards, group_size))
    return ADVANTAGES[kind](centred, epsilon).reshape(-1)


def zero_variance_groups(rewards: Float[Array, "M"], group_size: int) -> Bool[Array, "N"]:
    """Returns which groups teach nothing, all rewards being equal; the mean is the metric `frac_reward_zero_std`."""
    groups = _grouped(rewards, group_size)
    return jnp.max(groups, axis=-1) == jnp.min(groups, axis=-1)


def _grouped(rewards: Float[Array, "M"], group_size: int) -> Float[Array, "N G"]:
    rewards = jnp.asarray(rewards)
    if group_size < 2:
        raise ConfigError(f"group_size is {group_size}", fix="A branch is compared with its siblings: use at least 2")
    if rewards.ndim != 1 or rewards.size % group_size:
        raise ConfigError(
            f"rewards of shape {rewards.shape} do not fill groups of {group_size}",
            fix="Pass one reward per branch, whole groups, branches of one prompt side by side",
        )
    return rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32)).reshape(-1, group_size)


def _centred(groups: Float[Array, "N G"]) -> Float[Array, "N G"]:
    # Measured from the first branch, equal rewards leave no rounding error that the tiny std would blow up.
    offsets = groups - groups[:, :1]
    return offsets - jnp.mean(offsets, axis=-1, keepdims=True)
