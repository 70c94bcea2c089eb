"""The compiled steps: weights, optimiser and group rows in, new weights and metrics out."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from videoauto_jax.models.inputs import VisionInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.train.groups import GroupBatch, branch_log_probs
from videoauto_jax.train.grpo import GRPOLossConfig, policy_loss
from videoauto_jax.train.guard import grad_norm
from videoauto_jax.train.optimizer import make_optimizer
from videoauto_jax.train.parameters import TrainableConfig
from videoauto_jax.train.recipe import RunConfig

Pairs = dict[str, tuple[Array, Array]]
Places = tuple[NamedSharding | None, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update changes.

    Attributes:
        trainable: parameters that train, float32 masters.
        opt_state: the optimiser's state.
    """

    trainable: nnx.State
    opt_state: optax.OptState


class Learner:
    """One model being trained: which parameters train, how, and the compiled passes over group rows.

    Args:
        model: the initial model; its frozen parameters are kept, its trainable ones become the first `TrainState`.
        trainable: which parameters train.
        optimizer: the update rule.
        temperature: divides the logits of all log-probabilities, as in the rollout.
        remat: recompute activations in the backward pass.
    """

    def __init__(
        self,
        model: QwenVL,
        trainable: TrainableConfig,
        optimizer: optax.GradientTransformation,
        *,
        temperature: float = 1.0,
        remat: bool = False,
    ):
        self.graph, self.initial, self.frozen = nnx.split(model, trainable, ...)
        self.optimizer, self.temperature, self.remat = optimizer, temperature, remat
        self.log_probs = partial(_log_probs, self.graph, temperature=temperature, remat=remat)

    @classmethod
    def create(cls, model: QwenVL, config: RunConfig, total_steps: int, *, temperature: float = 1.0) -> "Learner":
        """The learner of a recipe."""
        _, trainable, _ = nnx.split(model, config.trainable, ...)
        optimizer = make_optimizer(config.optimizer, trainable, total_steps)
        return cls(model, config.trainable, optimizer, temperature=temperature, remat=config.remat)

    def initial_state(self) -> TrainState:
        """The state before the first update. Eager on purpose: moments take the shardings of their parameters.

        Updates donate their state, so this is a copy; `initial` stays whole.
        """
        return _on_one_mesh(TrainState(jax.tree.map(jnp.copy, self.initial), self.optimizer.init(self.initial)))

    def sft_step(self, state: TrainState, *arguments) -> tuple[TrainState, Pairs]:
        """See `_sft_step`; every array stays where it is."""
        return _sft_step(self.graph, self.optimizer, state, *arguments, remat=self.remat, places=_places(state))

    def grpo_step(self, state: TrainState, *arguments) -> tuple[TrainState, Pairs]:
        """See `_grpo_step`; every array stays where it is."""
        options = {"temperature": self.temperature, "remat": self.remat, "places": _places(state)}
        return _grpo_step(self.graph, self.optimizer, state, *arguments, **options)

    def model(self, trainable: nnx.State) -> QwenVL:
        """The model with these weights; no copy."""
        return nnx.merge(self.graph, trainable, self.frozen)


@jax.jit
def encode_vision(model: QwenVL, vision: VisionInputs) -> VisionFeatures:
    """The frozen tower's features of a batch, kept for all passes over it."""
    return model.encode_vision(vision)


@partial(jax.jit, static_argnums=0, static_argnames=("temperature", "remat"))
def _log_probs(
    graph: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: GroupBatch,
    features: VisionFeatures | None,
    *,
    temperature: float,
    remat: bool,
) -> Float[Array, "B G R"]:
    """Log-probabilities under given weights: the old and the reference pass."""
    return branch_log_probs(nnx.merge(graph, trainable, frozen), batch, features, temperature=temperature, remat=remat)


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("remat", "places"), donate_argnums=2)
def _sft_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: nnx.State,
    batch: GroupBatch,
    weights: Float[Array, "B G R"],
    *,
    remat: bool,
    places: Places,
) -> tuple[TrainState, Pairs]:
    """One supervised update: mean negative log-probability of the weighted tokens."""

    def loss(trainable: nnx.State) -> tuple[Array, Pairs]:
        log_probs = branch_log_probs(nnx.merge(graph, trainable, frozen), batch, remat=remat)
        total, count = -jnp.sum(weights * log_probs), jnp.sum(weights)
        return total / jnp.maximum(count, 1), {"loss": (total, count)}

    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.trainable)
    return _apply(optimizer, state, gradients, metrics, places)


@partial(jax.jit, static_argnums=(0, 1, 8), static_argnames=("temperature", "remat", "places"), donate_argnums=2)
def _grpo_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: nnx.State,
    batch: GroupBatch,
    features: VisionFeatures | None,
    old: tuple[Float[Array, "B G R"] | None, Float[Array, "B G R"] | None],
    advantages: Float[Array, "B G"],
    config: GRPOLossConfig,
    *,
    temperature: float,
    remat: bool,
    places: Places,
) -> tuple[TrainState, Pairs]:
    """One policy update on whole groups.

    Args:
        old: log-probabilities under the weights that wrote the branches and under the reference; None where not needed.
        advantages: of each branch.
        config: the loss.
    """
    flat = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])  # noqa: E731
    behaviour, reference = map(flat, old)

    def loss(trainable: nnx.State) -> tuple[Array, Pairs]:
        model = nnx.merge(graph, trainable, frozen)
        log_probs = branch_log_probs(model, batch, features, temperature=temperature, remat=remat)
        value, metrics = policy_loss(
            flat(log_probs), behaviour, reference, advantages.reshape(-1), flat(batch.mask), config
        )
        return value, {"loss": (value, jnp.ones(())), **metrics}

    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.trainable)
    return _apply(optimizer, state, gradients, metrics, places)


def _apply(
    optimizer: optax.GradientTransformation, state: TrainState, gradients: nnx.State, metrics: Pairs, places: Places
) -> tuple[TrainState, Pairs]:
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    leaves, tree = jax.tree.flatten(TrainState(optax.apply_updates(state.trainable, updates), opt_state))
    # Left alone, the compiler would move small arrays, and the second step would be another program.
    kept = [jax.lax.with_sharding_constraint(leaf, place) if place else leaf for leaf, place in zip(leaves, places)]
    return jax.tree.unflatten(tree, kept), {**metrics, "grad_norm": (grad_norm(opt_state), jnp.ones(()))}


def _places(state: TrainState) -> Places:
    """Where the leaves of a state lie; None off the mesh."""
    shardings = (leaf.sharding for leaf in jax.tree.leaves(state))
    return tuple(sharding if isinstance(sharding, NamedSharding) else None for sharding in shardings)


def _on_one_mesh(state: TrainState) -> TrainState:
    """Counters that the optimiser made on one device go to all devices of the parameters' mesh."""
    places = _places(state)
    mesh = next((place.mesh for place in places if place), None)
    if mesh is None:
        return state
    leaves, tree = jax.tree.flatten(state)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.unflatten(
        tree, [leaf if place else jax.device_put(leaf, everywhere) for leaf, place in zip(leaves, places)]
    )
