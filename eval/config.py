"""What an evaluation is made of."""

import dataclasses
from typing import Literal

from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError
from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.sampling.sampler import SamplingConfig
from videoauto_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation.

    Attributes:
        model: HF folder.
        output: folder of the results.
        data: the held-out data.
        sampling: mode `record` scores first, second and auto from one pass; `auto` and `first` really stop early.
            `threshold` is that of `auto` in both cases.
        profile: grading rules; `paper` as published, `strict` with its faults mended.
        prompt_variant: the answer-twice system prompt: `train` as in training, `eval` as released checkpoints were
            scored.
        limit: evaluate so many samples, drawn by `seed`; null: all.
        seed: of that draw.
        mesh: devices along each mesh axis.
        dtype: dtype of weights, activations and matrix products.
        graders: processes that grade mathematics.
    """

    model: str
    output: str
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig(mode="record")
    profile: Profile = "paper"
    prompt_variant: Literal["train", "eval", "demo"] = "train"
    limit: int | None = None
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    graders: int = 2

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit}", where="limit", fix="Give at least 1, or null for all samples")

    @property
    def scored_modes(self) -> tuple[str, ...]:
        """The modes that one pass in this mode determines."""
        return {"first": ("first",), "auto": ("first", "auto")}.get(self.sampling.mode, ("first", "second", "auto"))
