"""How good a branch is among the branches of its own prompt."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.registry import Registry

Others = int | Float[Array, "N 1"]
Advantage = Callable[[Float[Array, "N G"], Others, float], Float[Array, "N G"]]

ADVANTAGES: Registry[Advantage] = Registry("advantage")
"""Functions of (rewards minus their group mean `[N, G]`, the group's size less one, epsilon)."""

_EXTREMES = (jnp.max, -jnp.inf), (jnp.min, jnp.inf)


@ADVANTAGES.register("group_std")
def _group_std(centred: Float[Array, "N G"], others: Others, epsilon: float) -> Float[Array, "N G"]:
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / others
    return centred / (jnp.sqrt(variance) + epsilon)


@ADVANTAGES.register("no_std")
def _no_std(centred: Float[Array, "N G"], others: Others, epsilon: float) -> Float[Array, "N G"]:
    del others, epsilon
    return centred


@ADVANTAGES.register("leave_one_out")
def _leave_one_out(centred: Float[Array, "N G"], others: Others, epsilon: float) -> Float[Array, "N G"]:
    # r_i - mean of the others = (r_i - mean of all) * G / (G - 1).
    del epsilon
    return centred * ((others + 1) / others)


def group_advantages(
    rewards: Float[Array, "M"],
    group_size: int,
    *,
    kind: str = "group_std",
    epsilon: float = 1e-4,
    sound: Bool[Array, "M"] | None = None,
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
        sound: which branches there are, None for all. The others belong to no group: their rewards count nowhere, and
            their advantage is 0.

    Returns:
        float32 (float64 for float64 rewards).

    Raises:
        ConfigError: unknown kind, fewer than two branches per group, or rewards that do not fill whole groups.
    """
    groups, others = _grouped(rewards, group_size), group_size - 1
    if sound is not None:
        sound = jnp.asarray(sound).reshape(groups.shape)
        # A group of one has nobody to compare itself with: its centred reward is 0, whatever it is divided by.
        others = jnp.maximum(jnp.sum(sound, axis=-1, keepdims=True) - 1, 1).astype(groups.dtype)
    return ADVANTAGES[kind](_centred(groups, sound), others, epsilon).reshape(-1)


def zero_variance_groups(
    rewards: Float[Array, "M"], group_size: int, *, sound: Bool[Array, "M"] | None = None
) -> Bool[Array, "N"]:
    """Returns which groups teach nothing, all rewards being equal; the mean is the metric `frac_reward_zero_std`.

    `sound` as in `group_advantages`.
    """
    groups = _grouped(rewards, group_size)
    there = jnp.ones(groups.shape, bool) if sound is None else jnp.asarray(sound).reshape(groups.shape)
    most, least = (function(groups, axis=-1, where=there, initial=initial) for function, initial in _EXTREMES)
    return most <= least


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


def _centred(groups: Float[Array, "N G"], sound: Bool[Array, "N G"] | None) -> Float[Array, "N G"]:
    # Measured from the first branch, equal rewards leave no rounding error that the tiny std would blow up.
    if sound is None:
        offsets = groups - groups[:, :1]
        return offsets - jnp.mean(offsets, axis=-1, keepdims=True)
    offsets = groups - jnp.take_along_axis(groups, jnp.argmax(sound, axis=-1, keepdims=True), axis=-1)
    return jnp.where(sound, offsets - jnp.mean(offsets, axis=-1, keepdims=True, where=sound), 0)
