"""The optimiser of a run: AdamW, Adafactor or Muon, clipped by global norm, that never applies a non-finite step."""

import dataclasses
from collections.abc import Callable

import jax
import optax

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.guard import grad_norm, guard, nonfinite_count, nonfinite_streak, step_count
from videoauto_jax.train.moments import MomentType, scale_by_small_adam
from videoauto_jax.train.parameters import TrainableConfig, decays, matrix_axes
from videoauto_jax.train.registry import Registry

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "OptimizerConfig",
    "TrainableConfig",
    "grad_norm",
    "learning_rate_schedule",
    "make_optimizer",
    "nonfinite_count",
    "nonfinite_streak",
    "step_count",
]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Static choices of the optimiser; the defaults are upstream's run.

    Attributes:
        kind: a name in `OPTIMIZERS`.
        learning_rate: peak.
        schedule: after the warm-up: constant, linear (to 0) or cosine (to 0).
        warmup_steps: the rate rises linearly from 0; as in transformers the very first step then has rate 0.
        b1, b2, eps: of Adam.
        moments: how AdamW keeps its two moments: float32 (8 bytes per parameter), bfloat16 (4) or int8 (2).
        factored_decay: kind adafactor: exponent of the decay of its second moment, 1 - step ** -factored_decay.
        adam_ratio: kind muon: the rate of embeddings, head, norms and biases as a fraction of `learning_rate`.
        weight_decay: decoupled, times the learning rate; norms and biases do not decay.
        max_grad_norm: global norm that gradients are scaled down to; 0 is off.
        skip_nonfinite: leave weights and state alone where a gradient is not finite. Such steps are counted either way.

    Raises:
        ConfigError: an unknown name or a value outside its range.
    """

    kind: str = "adamw"
    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moments: MomentType = "float32"
    factored_decay: float = 0.8
    adam_ratio: float = 0.15
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    skip_nonfinite: bool = True

    def __post_init__(self):
        OPTIMIZERS[self.kind], SCHEDULES[self.schedule]
        for key in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}", fix="It must be at least 0")
        for key in ("b1", "b2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}", fix="It must be in [0, 1)")
        if not self.eps > 0:
            raise ConfigError(f"eps is {self.eps}", fix="It must be above 0")


SCHEDULES: Registry[Callable[[float, int], optax.Schedule]] = Registry("schedule")
"""Functions of (peak rate, steps after the warm-up) -> schedule of the step after the warm-up."""

SCHEDULES.register("constant")(lambda peak, steps: optax.constant_schedule(peak))
SCHEDULES.register("linear")(lambda peak, steps: optax.linear_schedule(peak, 0.0, steps))
SCHEDULES.register("cosine")(lambda peak, steps: optax.cosine_decay_schedule(peak, steps))

OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry("optimizer")
"""Functions of (config, schedule, decay mask) -> transformation."""


@OPTIMIZERS.register("adamw")
def _adamw(config: OptimizerConfig, schedule: optax.Schedule, mask) -> optax.GradientTransformation:
    if config.moments == "float32":
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    else:
        adam = scale_by_small_adam(config.b1, config.b2, config.eps, config.moments)
    return optax.chain(adam, *_decayed_rate(config, schedule, mask))


@OPTIMIZERS.register("adafactor")
def _adafactor(config: OptimizerConfig, schedule: optax.Schedule, mask) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) without momentum and without scaling by the parameters: state of a matrix's border.

    Updates are clipped to a root-mean-square of 1, as the paper does; decay is decoupled as AdamW's.
    """
    factored = optax.scale_by_factored_rms(decay_rate=config.factored_decay)
    return optax.chain(factored, optax.clip_by_block_rms(1.0), *_decayed_rate(config, schedule, mask))


def _decayed_rate(config: OptimizerConfig, schedule: optax.Schedule, mask) -> tuple:
    return optax.add_decayed_weights(config.weight_decay, mask), optax.scale_by_learning_rate(schedule)


@OPTIMIZERS.register("muon")
def _muon(config: OptimizerConfig, schedule: optax.Schedule, mask) -> optax.GradientTransformation:
    """Muon for the decoder's, tower's and mergers' matrices, Adam at `adam_ratio` times the rate for all else."""
    return optax.contrib.muon(
        schedule,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        weight_decay_mask=mask,
        adam_learning_rate=lambda step: config.adam_ratio * schedule(step),
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
            lambda path, leaf: matrix_axes(path, leaf.ndim), params
        ),
    )


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the schedule: applied step (from 0) -> learning rate.

    Raises:
        ConfigError: the warm-up fills the whole run.
    """
    if not 0 <= config.warmup_steps < total_steps:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps} in a run of {total_steps} steps", fix="It must be less than the run"
        )
    body = SCHEDULES[config.schedule](config.learning_rate, total_steps - config.warmup_steps)
    if not config.warmup_steps:
        return body
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([rise, body], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, params, total_steps: int) -> optax.GradientTransformation:
    """Returns the transformation for the trainable parameters.

    Args:
        params: pytree of the parameters that train (an `nnx.State`, or abstract arrays): only their paths are read.
        total_steps: optimiser steps of the run, for the schedule. A skipped step does not advance it.

    Returns:
        A transformation whose updates, and state unless `moments` says otherwise, are float32 whatever the type of
        parameters and gradients, and whose counters are read by `step_count`, `nonfinite_count`, `nonfinite_streak`
        and `grad_norm`. Parameters should be float32 too: in bfloat16 an update below 1/512 of a weight is lost.

    Raises:
        ConfigError: the warm-up fills the whole run.
    """
    mask = jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)
    inner = OPTIMIZERS[config.kind](config, learning_rate_schedule(config, total_steps), mask)
    return guard(inner, max_norm=config.max_grad_norm, skip=config.skip_nonfinite)
