"""What a training run is made of: typed recipes that YAML files fill."""

import dataclasses
from typing import Literal

from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError
from videoauto_jax.sharding import MeshConfig
from videoauto_jax.train.grpo import ADVANTAGES, GRPOLossConfig
from videoauto_jax.train.optimizer import OptimizerConfig
from videoauto_jax.train.parameters import TrainableConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What supervised and reinforcement learning share.

    Attributes:
        model: HF folder to start from.
        output: folder of the run.
        data: the data.
        mesh: devices along each mesh axis.
        dtype: dtype of activations and matrix products; parameters are float32 masters.
        remat: recompute activations in the backward pass.
        trainable: which parameters train.
        optimizer: the update rule.
        seed: of data order and sampling.
        save_every: steps (SFT) or rounds (GRPO) between checkpoints.
        keep: checkpoints kept.
    """

    model: str
    output: str
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: bool = True
    trainable: TrainableConfig = TrainableConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 42
    save_every: int = 200
    keep: int = 1


@dataclasses.dataclass(frozen=True)
class SFTConfig(RunConfig):
    """Supervised fine-tuning on demonstrations.

    Attributes:
        steps: optimiser steps.
        rows: group rows per step; a row is one visual and its questions.
        questions: most questions in a row.
        max_response_tokens: demonstrations longer than this, their question included, are an error.
    """

    steps: int = 1000
    rows: int = 8
    questions: int = 8
    max_response_tokens: int = 2048


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How branches are written.

    Attributes:
        branches: per prompt, the group size `G`.
        max_new_tokens: most tokens of a branch.
        temperature: of sampling and of all log-probabilities.
    """

    branches: int = 16
    max_new_tokens: int = 2048
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """How branches are scored.

    Attributes:
        weights: of the first answer, the second answer and the format (paper: 0.9, 1.1, 1.0).
        profile: grading rules; `strict` mends the faults of `paper`.
        workers: grading processes.
        timeout_s: seconds for one answer.
    """

    weights: tuple[float, float, float] = (0.9, 1.1, 1.0)
    profile: Literal["strict", "paper"] = "strict"
    workers: int = 2
    timeout_s: float = 10.0


@dataclasses.dataclass(frozen=True)
class GRPOConfig(RunConfig):
    """Group-relative policy optimisation; the defaults are the paper's run.

    Attributes:
        rounds: generation rounds; null: `epochs` passes over the data.
        epochs: passes over the data if `rounds` is null.
        prompts: prompts generated per round.
        updates: optimiser steps per round, each on `prompts / updates` whole groups.
        advantage: a name in `train.advantages.ADVANTAGES`.
        loss: the policy loss.
        rollout: how branches are written.
        reward: how they are scored.
    """

    rounds: int | None = None
    epochs: int = 1
    prompts: int = 128
    updates: int = 8
    advantage: str = "group_std"
    loss: GRPOLossConfig = GRPOLossConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        ADVANTAGES[self.advantage]
        if self.prompts % self.updates:
            raise ConfigError(
                f"{self.prompts} prompts do not divide into {self.updates} updates",
                where="prompts, updates",
                fix=f"Set updates to a divisor of {self.prompts}",
            )
        if not self.rollout.temperature > 0:
            fix = "Set it above 0: greedy branches of a group would all be the same"
            raise ConfigError(f"temperature is {self.rollout.temperature}", where="rollout.temperature", fix=fix)
        if self.rollout.branches < 2:
            raise ConfigError("a group needs at least 2 branches", where="rollout.branches", fix="Set it to 2 or more")
