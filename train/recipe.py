"""What a training run is made of: typed recipes that YAML files fill."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError
from videoauto_jax.rewards.scoring import ResponseForm
from videoauto_jax.sampling.config import SamplingConfig
from videoauto_jax.sharding import MeshConfig
from videoauto_jax.train.grpo import ADVANTAGES, GRPOLossConfig
from videoauto_jax.train.lora import LoraConfig, is_adapter
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
        trainable: which parameters train; not read with `lora`.
        lora: train adapters beside frozen weights, which are then kept in `dtype`; null trains the weights themselves.
        optimizer: the update rule.
        seed: of data order and sampling.
        save_every: steps (SFT) or rounds (GRPO) between checkpoints.
        keep: newest checkpoints kept; the best one of held-out evaluation is kept besides.
        max_nonfinite: updates in a row without a finite gradient after which the run stops and saves the batch.
        wandb: project of Weights & Biases to log to as well; needs the package wandb.
    """

    model: str
    output: str
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: bool = True
    trainable: TrainableConfig = TrainableConfig()
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 42
    save_every: int = 200
    keep: int = 1
    max_nonfinite: int = 5
    wandb: str | None = None

    def __post_init__(self):
        self._at_least(1, "save_every", "keep", "max_nonfinite")

    def _at_least(self, least: int, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{key} is {value}", where=key, fix=f"It must be at least {least}")

    @property
    def trains(self) -> Callable[[tuple, object], bool]:
        """NNX filter of the parameters that train."""
        return self.trainable if self.lora is None else is_adapter

    @property
    def param_dtype(self) -> str:
        """dtype in which the model's own parameters are kept."""
        return "float32" if self.lora is None else self.dtype


@dataclasses.dataclass(frozen=True)
class SFTConfig(RunConfig):
    """Supervised fine-tuning on demonstrations.

    Attributes:
        target: what is learnt: each record's `response`; its `answer` as it stands (the published baseline); or
            `boxed`, the answer in the form that the prompt asks for.
        steps: optimiser steps.
        rows: group rows per step; a row is one visual and its questions.
        questions: most questions in a row.
        max_response_tokens: demonstrations longer than this, their question included, are an error.
    """

    target: Literal["response", "answer", "boxed"] = "response"
    steps: int = 1000
    rows: int = 8
    questions: int = 8
    max_response_tokens: int = 2048

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "steps", "rows", "questions", "max_response_tokens")


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How branches are written.

    Attributes:
        branches: per prompt, the group size `G`.
        max_new_tokens: most tokens of a branch.
        temperature: of sampling and of all log-probabilities.
        top_p, top_k, min_p, repetition_penalty: see `SamplingConfig`. The loss compares log-probabilities of the whole
            distribution: with anything but these defaults, which the paper uses, the branches come from another one,
            `rollout_kl` shows by how much and `loss.truncated_importance` corrects for it.

    Raises:
        ConfigError: a value outside its range.
    """

    branches: int = 16
    max_new_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        self.sampling()
        if not self.temperature > 0:
            fix = "Set it above 0: greedy branches of a group would all be the same"
            raise ConfigError(f"temperature is {self.temperature}", fix=fix)
        if self.branches < 2:
            raise ConfigError("a group needs at least 2 branches", fix="Set branches to 2 or more")

    def sampling(self, **options: object) -> SamplingConfig:
        """How the sampler is told; `options` are further fields of `SamplingConfig`."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "branches"}
        return SamplingConfig(mode="record", reuse_prefixes=False, **own | options)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """How branches are scored.

    Attributes:
        form: what a response looks like. With `direct` and `cot` there is one answer, and both accuracies are its.
        weights: of the first answer, the second answer and the format (paper: 0.9, 1.1, 1.0).
        functions: rewards of one's own, with their weights: `module:function` or the name of a registered grader, which
            is given the whole response and not the content of a box.
        profile: grading rules; `strict` mends the faults of `paper`.
        workers: grading processes.
        timeout_s: seconds for one answer.
        overlong_buffer: tokens before `rollout.max_new_tokens` over which a penalty rises linearly from 0 to
            `overlong_penalty` (soft over-long punishment, DAPO, arXiv 2503.14476, eq. 13); 0 is off.
        overlong_penalty: the penalty of a branch that reaches the limit.
    """

    form: ResponseForm = "answer_twice"
    weights: tuple[float, float, float] = (0.9, 1.1, 1.0)
    functions: dict[str, float] = dataclasses.field(default_factory=dict)
    profile: Literal["strict", "paper"] = "strict"
    workers: int = 2
    timeout_s: float = 10.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0


@dataclasses.dataclass(frozen=True)
class HoldoutConfig:
    """Samples set aside from the training data and answered greedily every now and then.

    Attributes:
        samples: how many; 0 is off. Which ones depends on the data and the seed only.
        every: rounds between evaluations. A checkpoint is written with each; the best is kept.
        threshold: confidence from which the first answer counts in `eval/accuracy_auto`, by which the best is chosen.
    """

    samples: int = 0
    every: int = 25
    threshold: float = 0.97


@dataclasses.dataclass(frozen=True)
class GRPOConfig(RunConfig):
    """Group-relative policy optimisation; the defaults are the paper's run.

    Attributes:
        rounds: generation rounds; null: `epochs` passes over the data.
        epochs: passes over the data if `rounds` is null.
        prompts: prompts generated per round.
        updates: optimiser steps per pass over a round, each on `prompts / updates` whole groups.
        iterations: passes over the groups of a round (μ of GRPO).
        subgroups: rows that each group is split over, its prompt computed once in each. Rows of an update, `prompts /
            updates * subgroups`, should be a multiple of the mesh's data shards.
        accumulate: parts that the rows of an update are cut into and differentiated one after the other, for memory.
        advantage: a name in `train.advantages.ADVANTAGES`.
        dynamic_sampling: what becomes of groups whose rewards are all equal (DAPO, arXiv 2503.14476): `off` keeps
            them, `drop` leaves them out of the loss, `refill` draws further prompts in their place.
        max_refills: with `refill`: how many more times `prompts` are drawn in a round; then it goes on with less.
        mask_truncated: leave branches that reached `rollout.max_new_tokens` out of the loss.
        loss: the policy loss.
        rollout: how branches are written.
        reward: how they are scored.
        holdout: evaluation while training.
        sample_every: rounds between two rollouts written to samples.jsonl.
    """

    rounds: int | None = None
    epochs: int = 1
    prompts: int = 128
    updates: int = 8
    iterations: int = 1
    subgroups: int = 1
    accumulate: int = 1
    advantage: str = "group_std"
    dynamic_sampling: Literal["off", "drop", "refill"] = "off"
    max_refills: int = 4
    mask_truncated: bool = False
    loss: GRPOLossConfig = GRPOLossConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    holdout: HoldoutConfig = HoldoutConfig()
    sample_every: int = 10

    @property
    def rows(self) -> int:
        """Group rows of one update."""
        return self.prompts // self.updates * self.subgroups

    @property
    def policy_loss(self) -> GRPOLossConfig:
        """The loss; where it states no `max_completion_length`, branches end at `rollout.max_new_tokens`."""
        length = self.loss.max_completion_length or self.rollout.max_new_tokens
        return dataclasses.replace(self.loss, max_completion_length=length)

    def __post_init__(self):
        super().__post_init__()
        ADVANTAGES[self.advantage]
        self._check_counts()
        self._check_divisions()

    def _check_counts(self) -> None:
        self._at_least(1, "prompts", "updates", "iterations", "subgroups", "accumulate", "sample_every")
        self._at_least(1, "rounds", "epochs")
        self._at_least(0, "max_refills")
        if self.holdout.every < 1:
            raise ConfigError(f"every is {self.holdout.every}", where="holdout.every", fix="It must be at least 1")
        if self.trainable.vision and self.lora is None:
            fix = "Leave it frozen: what it sees is computed once per prompt, outside of the gradient"
            raise ConfigError("the vision tower does not train with GRPO", where="trainable.vision", fix=fix)
        if not 0 <= self.reward.overlong_buffer <= self.rollout.max_new_tokens:
            raise ConfigError(
                f"overlong_buffer is {self.reward.overlong_buffer}",
                where="reward.overlong_buffer",
                fix=f"It must lie within rollout.max_new_tokens, {self.rollout.max_new_tokens}",
            )
        self._check_branch_lengths()
        if self.accumulate > 1 and self.loss.top_entropy_quantile < 1:
            fix = "Set one of them to 1: the quantile is taken over the whole update"
            raise ConfigError("accumulate and top_entropy_quantile exclude each other", where="accumulate", fix=fix)

    def _check_branch_lengths(self) -> None:
        longest = self.rollout.branches // self.subgroups * self.rollout.max_new_tokens
        if (ladder := self.data.branch_lengths) and max(ladder) < longest:
            raise ConfigError(
                f"a row's branches may have {longest} tokens (branches / subgroups * max_new_tokens), the last rung "
                f"holds {max(ladder)}",
                where="data.branch_lengths",
                fix=f"Add a rung of {longest}, or lower rollout.branches or rollout.max_new_tokens",
            )

    def _check_divisions(self) -> None:
        branches = self.rollout.branches
        for whole, what, parts, key in (
            (self.prompts, "prompts", self.updates, "updates"),
            (branches, "branches", self.subgroups, "subgroups"),
            (self.rows, "rows of an update", self.accumulate, "accumulate"),
        ):
            if whole % parts:
                divisors = [n for n in range(1, whole + 1) if whole % n == 0]
                nearest = min(divisors, key=lambda n: abs(n - parts))
                raise ConfigError(
                    f"{whole} {what} do not divide into {parts} {key}",
                    where=key,
                    fix=f"Set {key} to a divisor of {whole}, for example {nearest}",
                )
