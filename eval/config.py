"""What an evaluation is made of."""

import dataclasses
from typing import Literal

from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError
from videoauto_jax.eval.benchmarks.base import benchmark
from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.sampling.sampler import SamplingConfig
from videoauto_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """One published benchmark.

    Attributes:
        path: its folder, videos and annotations; the folder of its usual name below the recipe's `root` where empty.
        annotations: folder or file of the annotations if they lie elsewhere; `hub` fetches them.
        tasks: its sub-tasks to run; all where empty.
        max_frames: most frames of a video; that of `data.video` where null.
        max_new_tokens: most tokens of an answer; that of `sampling` where null, for a plain prompt the benchmark's.
        prompt: that of the recipe where null.
    """

    path: str = ""
    annotations: str = ""
    tasks: tuple[str, ...] = ()
    max_frames: int | None = None
    max_new_tokens: int | None = None
    prompt: Literal["boxed", "plain"] | None = None

    def __post_init__(self):
        for key in ("max_frames", "max_new_tokens"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(f"{key}={value}", where="benchmarks", fix="Give at least 1, or null")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation.

    Attributes:
        model: HF folder, or the name of a model on the Hugging Face hub.
        output: folder of the results.
        data: held-out data sets, and how all media are read.
        root: folder that holds the benchmarks' folders.
        benchmarks: benchmarks to run, by name.
        only: run these benchmarks alone; they need not be among `benchmarks`.
        prompt: ask benchmarks for a boxed answer, as VideoAuto-R1 is asked, or plainly, as the baselines are.
        published: whose published results stand beside the scores: `Qwen2.5-VL-7B`, `VideoAuto-R1-7B`,
            `Qwen3-VL-8B` or `VideoAuto-R1-8B`; null for none.
        sampling: mode `record` scores first, second and auto from one pass; `auto` and `first` really stop early.
            `threshold` is that of `auto` in both cases.
        checkpoint_penalty: take the repetition penalty from the checkpoint's generation_config.json, as the published
            evaluations do; it also enters their confidence.
        profile: grading rules; `paper` as published, `strict` with its faults mended.
        prompt_variant: the answer-twice system prompt: `train` as in training, `eval` as released checkpoints were
            scored.
        strict_media: stop before anything is computed if a video is missing; otherwise those are listed and counted.
        limit: evaluate so many samples of the data sets, and of every benchmark, drawn by `seed`, and one more where
            that completes a pair; null: all.
        seed: of that draw.
        part: [i, n]: answer the i-th of n parts of the videos, i from 0; processes that share `output` take one each,
            and the last one to finish writes the whole result. null: everything.
        mesh: devices along each mesh axis.
        dtype: dtype of weights, activations and matrix products.
        graders: processes that grade mathematics.
    """

    model: str
    output: str
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig(mode="record")
    root: str = ""
    benchmarks: dict[str, BenchmarkConfig] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] = ()
    prompt: Literal["boxed", "plain"] = "boxed"
    published: Literal["Qwen2.5-VL-7B", "VideoAuto-R1-7B", "Qwen3-VL-8B", "VideoAuto-R1-8B"] | None = None
    checkpoint_penalty: bool = False
    profile: Profile = "paper"
    prompt_variant: Literal["train", "eval", "demo"] = "train"
    strict_media: bool = False
    limit: int | None = None
    seed: int = 0
    part: tuple[int, int] | None = None
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    graders: int = 2

    def __post_init__(self):
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise ConfigError(f"part={list(self.part)}", where="part", fix="Give [i, n] with i from 0 to n - 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit}", where="limit", fix="Give at least 1, or null for all samples")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}", where="seed", fix="Give 0 or more")

    @property
    def asked(self) -> tuple[str, ...]:
        """The benchmarks that this runs."""
        return tuple(dict.fromkeys(self.only or self.benchmarks))

    def sampling_of(self, name: str) -> SamplingConfig:
        """How answers to a benchmark are written; to a data set, where it is none."""
        if name not in self.benchmarks and name not in self.only:
            return self.sampling
        usual = self.sampling.max_new_tokens if self.boxed(name) else benchmark(name).plain_tokens
        own = self.benchmarks.get(name, BenchmarkConfig())
        return dataclasses.replace(self.sampling, max_new_tokens=own.max_new_tokens or usual)

    def boxed(self, name: str) -> bool:
        """Whether a benchmark asks for a boxed answer."""
        return (self.benchmarks.get(name, BenchmarkConfig()).prompt or self.prompt) == "boxed"

    @property
    def headline_mode(self) -> str:
        """The mode whose scores stand first."""
        if self.data.prompt != "answer_twice":
            return "second"
        return {"record": "auto"}.get(self.sampling.mode, self.sampling.mode)

    @property
    def scored_modes(self) -> tuple[str, ...]:
        """The modes that one pass in this mode determines."""
        if self.data.prompt != "answer_twice":
            return ("second",)  # one answer, at the end
        return {"first": ("first",), "auto": ("first", "auto")}.get(self.sampling.mode, ("first", "second", "auto"))
