"""A wrapper around any optimiser: float32 arithmetic, clipping by global norm, non-finite steps skipped and counted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class GuardState(NamedTuple):
    """State of `guard`.

    Attributes:
        inner: state of the wrapped optimiser.
        applied: steps applied.
        nonfinite: steps whose gradient was not finite.
        streak: such steps since the last finite one.
        grad_norm: global norm of the last gradient before clipping (inf or NaN if it was not finite).
    """

    inner: optax.OptState
    applied: Int[Array, ""]
    nonfinite: Int[Array, ""]
    streak: Int[Array, ""]
    grad_norm: Float[Array, ""]


def guard(inner: optax.GradientTransformation, *, max_norm: float, skip: bool) -> optax.GradientTransformation:
    """Wraps `inner`.

    A step is finite if the global norm of its gradient is: a norm beyond float32's range could not be clipped either.
    `optax.apply_if_finite` lets a step through after some failures in a row; this never does, the loop decides.

    Args:
        max_norm: gradients of a greater global norm are scaled down to it; 0 is off.
        skip: non-finite steps leave parameters and `inner` state unchanged.
    """

    def init(params) -> GuardState:
        # A counter each: a step that donates its state may not find one buffer twice.
        applied, nonfinite, streak = (jnp.zeros((), jnp.int32) for _ in range(3))
        return GuardState(inner.init(_float32(params)), applied, nonfinite, streak, jnp.zeros((), jnp.float32))

    def update(grads, state: GuardState, params=None):
        grads = _float32(grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        apply = finite if skip else jnp.bool_(True)
        if max_norm:
            scale = jnp.minimum(1.0, max_norm / norm)
            grads = jax.tree.map(lambda grad: grad * scale, grads)
        updates, inner_state = inner.update(grads, state.inner, _float32(params))
        # Selecting element by element fuses into the update; a branch would hold two copies of the state.
        updates = jax.tree.map(lambda update: jnp.where(apply, update, 0), updates)
        inner_state = jax.tree.map(lambda new, old: jnp.where(apply, new, old), inner_state, state.inner)
        failed = (~finite).astype(jnp.int32)
        streak = (state.streak + 1) * failed
        return updates, GuardState(inner_state, state.applied + apply, state.nonfinite + failed, streak, norm)

    return optax.GradientTransformation(init, update)


def step_count(opt_state: optax.OptState) -> Int[Array, ""]:
    """Returns the number of steps applied."""
    return _guard_state(opt_state).applied


def nonfinite_count(opt_state: optax.OptState) -> Int[Array, ""]:
    """Returns the number of steps whose gradient was not finite."""
    return _guard_state(opt_state).nonfinite


def nonfinite_streak(opt_state: optax.OptState) -> Int[Array, ""]:
    """Returns how many of the latest steps in a row were not finite."""
    return _guard_state(opt_state).streak


def grad_norm(opt_state: optax.OptState) -> Float[Array, ""]:
    """Returns the global norm of the last gradient, before clipping."""
    return _guard_state(opt_state).grad_norm


def _guard_state(opt_state: optax.OptState) -> GuardState:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, GuardState))
    found = [leaf for leaf in leaves if isinstance(leaf, GuardState)]
    if len(found) != 1:
        raise ValueError(f"expected the state of one guarded optimizer, found {len(found)}")
    return found[0]


def _float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
