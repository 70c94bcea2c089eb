"""The static choices of the policy loss."""

import dataclasses

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.aggregation import LOSS_TYPES
from videoauto_jax.train.kl import KL_ESTIMATORS


@dataclasses.dataclass(frozen=True)
class GRPOLossConfig:
    """Static choices of the loss; the defaults are upstream's run.

    Attributes:
        loss_type: aggregation: grpo, bnpo, dapo or dr_grpo.
        importance_sampling_level: token, or sequence (GSPO, arXiv 2507.18071).
        beta: weight of the KL term.
        kl_estimator: k1, k2, k3 or k3_straight_through.
        epsilon: the ratio is held above 1 - epsilon.
        epsilon_high: the ratio is held below 1 + epsilon_high (clip-higher, DAPO, arXiv 2503.14476); None: epsilon.
        delta: dual clip: bound on the ratio of branches worse than their group (arXiv 1912.09729); None is off.
        top_entropy_quantile: share of tokens, highest entropy first, that carry the policy term (arXiv 2506.01939).
        truncated_importance: cap of the weight old / sampling that corrects for a sampler whose log-probabilities are
            not quite the trainer's (the truncation of IMPALA, arXiv 1802.01561); None is off.
        max_completion_length: tokens a completion may have; the constant divisor of dr_grpo. In a recipe None is
            `rollout.max_new_tokens`.

    Raises:
        ConfigError: a value outside its range, or an unknown name.
    """

    loss_type: str = "grpo"
    importance_sampling_level: str = "token"
    beta: float = 0.01
    kl_estimator: str = "k3"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    top_entropy_quantile: float = 1.0
    truncated_importance: float | None = None
    max_completion_length: int | None = None

    def __post_init__(self):
        KL_ESTIMATORS[self.kl_estimator]
        if self.importance_sampling_level not in ("token", "sequence"):
            raise ConfigError(
                f"unknown importance_sampling_level {self.importance_sampling_level!r}", fix="Use token or sequence"
            )
        LOSS_TYPES[self.loss_type]
        length = self.max_completion_length
        _require(length is None or length > 0, "max_completion_length", length, "at least 1")
        _require(self.beta >= 0, "beta", self.beta, "at least 0")
        _require(0 <= self.epsilon < 1, "epsilon", self.epsilon, "in [0, 1)")
        _require(self.upper >= 1, "epsilon_high", self.epsilon_high, "at least 0")
        _require(self.delta is None or self.delta > self.upper, "delta", self.delta, "above 1 + epsilon_high")
        cap = self.truncated_importance
        _require(cap is None or cap > 0, "truncated_importance", cap, "above 0")
        _require(0 < self.top_entropy_quantile <= 1, "top_entropy_quantile", self.top_entropy_quantile, "in (0, 1]")

    @property
    def lower(self) -> float:
        """Least ratio of the clip range."""
        return 1 - self.epsilon

    @property
    def upper(self) -> float:
        """Greatest ratio of the clip range."""
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value}", fix=f"It must be {rule}")
