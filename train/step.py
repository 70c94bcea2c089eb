"""The compiled steps: weights, optimiser and group rows in, new weights and metrics out."""

import dataclasses
from functools import partial, reduce

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from videoauto_jax.models.inputs import VisionInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.train.groups import GroupBatch, branch_log_probs, branch_scores, deal_rows, microbatches
from videoauto_jax.train.grpo import GRPOLossConfig, loss_normalizer, policy_loss
from videoauto_jax.train.guard import grad_norm, nonfinite_streak
from videoauto_jax.train.lora import attach_adapters
from videoauto_jax.train.metrics import merge
from videoauto_jax.train.optimizer import make_optimizer
from videoauto_jax.train.recipe import GRPOConfig, RunConfig

Pairs = dict[str, tuple[Array, Array]]
Places = tuple[NamedSharding | None, ...]
NONFINITE_STREAK = "nonfinite_streak_max"
"""Metric: updates in a row, up to this one, whose gradient was not finite."""


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupSignals:
    """What the policy loss knows about the branches of group rows, besides their tokens.

    Attributes:
        advantages: of each branch.
        counted: branches that take part in the loss.
        sampling: log-probabilities that the sampler drew the tokens with.
        old: log-probabilities under the weights that wrote the branches; None if those are the weights being trained.
        reference: log-probabilities under the reference; None without a KL term.
    """

    advantages: Float[Array, "B G"]
    counted: Bool[Array, "B G"]
    sampling: Float[Array, "B G R"]
    old: Float[Array, "B G R"] | None = None
    reference: Float[Array, "B G R"] | None = None


class Learner:
    """One model being trained: which parameters train, how, and the compiled passes over group rows.

    Args:
        model: the initial model; its frozen parameters are kept, its trainable ones become the first `TrainState`.
        trainable: which parameters train.
        optimizer: the update rule.
        temperature: divides the logits of all log-probabilities, as in the rollout.
        remat: recompute activations in the backward pass.
        accumulate: parts that the rows of a policy update are cut into, to be differentiated one after the other.
        keep: keep the initial weights beside those that train, as the reference of a KL term.
    """

    def __init__(
        self,
        model: QwenVL,
        trainable: nnx.filterlib.Filter,
        optimizer: optax.GradientTransformation,
        *,
        temperature: float = 1.0,
        remat: bool = False,
        accumulate: int = 1,
        keep: bool = True,
    ):
        self.keep = keep
        self.graph, self.initial, self.frozen = nnx.split(model, trainable, ...)
        self.optimizer, self.temperature, self.remat, self.accumulate = optimizer, temperature, remat, accumulate
        self.log_probs = partial(_log_probs, self.graph, temperature=temperature, remat=remat)

    @classmethod
    def create(cls, model: QwenVL, config: RunConfig, total_steps: int, *, temperature: float = 1.0) -> "Learner":
        """The learner of a recipe; with LoRA, adapters are attached to the model."""
        if config.lora is not None:
            attach_adapters(model, config.lora, config.seed)
        _, trainable, _ = nnx.split(model, config.trains, ...)
        optimizer = make_optimizer(config.optimizer, trainable, total_steps)
        options = {"remat": config.remat, "accumulate": getattr(config, "accumulate", 1)}
        options["keep"] = isinstance(config, GRPOConfig) and config.loss.beta > 0
        return cls(model, config.trains, optimizer, temperature=temperature, **options)

    def initial_state(self) -> TrainState:
        """The state before the first update. Eager on purpose: moments take the shardings of their parameters.

        Updates donate their state: where `initial` is to be kept this is a copy, else `initial` itself.
        """
        weights = jax.tree.map(jnp.copy, self.initial) if self.keep else self.initial
        return _on_one_mesh(TrainState(weights, self.optimizer.init(self.initial)))

    def sft_step(self, state: TrainState, *arguments) -> tuple[TrainState, Pairs]:
        """See `_sft_step`; every array stays where it is."""
        return _sft_step(self.graph, self.optimizer, state, *arguments, remat=self.remat, places=_places(state))

    def grpo_step(self, state: TrainState, *arguments) -> tuple[TrainState, Pairs]:
        """See `_grpo_step`; every array stays where it is."""
        options = {"temperature": self.temperature, "remat": self.remat, "accumulate": self.accumulate}
        return _grpo_step(self.graph, self.optimizer, state, *arguments, **options, places=_places(state))

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


@partial(
    jax.jit,
    static_argnums=(0, 1, 7),
    static_argnames=("temperature", "remat", "accumulate", "places"),
    donate_argnums=2,
)
def _grpo_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: nnx.State,
    batch: GroupBatch,
    features: VisionFeatures | None,
    signals: GroupSignals,
    config: GRPOLossConfig,
    *,
    temperature: float,
    remat: bool,
    accumulate: int,
    places: Places,
) -> tuple[TrainState, Pairs]:
    """One policy update on whole groups; `accumulate` parts of the rows give the loss and the gradient of the whole."""
    normalizer = loss_normalizer(_flat(batch.mask), config, counted=_flat(signals.counted))
    options = {"temperature": temperature, "remat": remat, "entropies": config.top_entropy_quantile < 1}

    def loss(trainable: nnx.State, batch: GroupBatch, signals: GroupSignals) -> tuple[Array, Pairs]:
        scores = branch_scores(nnx.merge(graph, trainable, frozen), batch, features, **options)
        return _group_loss(*scores, batch, signals, config, normalizer)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, metrics), gradients = gradient(state.trainable, batch, signals)
    else:
        parts = microbatches(batch, accumulate), jax.tree.map(partial(deal_rows, count=accumulate), signals)
        value, metrics, gradients = _accumulated(partial(gradient, state.trainable), parts, state.trainable)
    return _apply(optimizer, state, gradients, {"loss": (value, jnp.ones(())), **metrics}, places)


def _group_loss(
    log_probs: Float[Array, "B G R"],
    entropies: Float[Array, "B G R"] | None,
    batch: GroupBatch,
    signals: GroupSignals,
    config: GRPOLossConfig,
    normalizer: Float[Array, ""],
) -> tuple[Array, Pairs]:
    """`policy_loss` of branches that stand in groups."""
    return policy_loss(
        _flat(log_probs),
        _flat(signals.old),
        _flat(signals.reference),
        _flat(signals.advantages),
        _flat(batch.mask),
        config,
        sampling=_flat(signals.sampling),
        counted=_flat(signals.counted),
        entropies=_flat(entropies),
        normalizer=normalizer,
    )


def _accumulated(gradient, parts: tuple, like: nnx.State) -> tuple[Array, Pairs, nnx.State]:
    """Sums losses and gradients of parts along the first axis, one after the other; merges their metrics."""

    def add(total: tuple, part: tuple) -> tuple:
        (value, metrics), gradients = gradient(*part)
        return jax.tree.map(jnp.add, total, (value, gradients)), metrics

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), like)
    (value, gradients), metrics = jax.lax.scan(add, (jnp.zeros(()), zeros), parts)
    count = len(jax.tree.leaves(metrics)[0])
    each = [jax.tree.map(lambda leaf, part=part: leaf[part], metrics) for part in range(count)]
    return value, reduce(partial(merge, where=jnp.where), each), gradients


def _flat(array: Array | None) -> Array | None:
    return None if array is None else array.reshape(-1, *array.shape[2:])


def _apply(
    optimizer: optax.GradientTransformation, state: TrainState, gradients: nnx.State, metrics: Pairs, places: Places
) -> tuple[TrainState, Pairs]:
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    leaves, tree = jax.tree.flatten(TrainState(optax.apply_updates(state.trainable, updates), opt_state))
    # Left alone, the compiler would move small arrays, and the second step would be another program.
    kept = [jax.lax.with_sharding_constraint(leaf, place) if place else leaf for leaf, place in zip(leaves, places)]
    told = {"grad_norm": grad_norm(opt_state), NONFINITE_STREAK: nonfinite_streak(opt_state)}
    return jax.tree.unflatten(tree, kept), {**metrics, **{name: (value, jnp.ones(())) for name, value in told.items()}}


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
