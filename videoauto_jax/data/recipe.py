"""The data section of a recipe, shared by training and evaluation."""

import dataclasses
import os
from typing import Literal

from videoauto_jax.data.annotations import ImageBudget, Sample, VideoBudget
from videoauto_jax.data.chat import VideoPrompt
from videoauto_jax.data.datasets import DatasetConfig, load_datasets
from videoauto_jax.data.processor import Processor, load_processor
from videoauto_jax.data.resize import ResizeMode
from videoauto_jax.data.stream import StreamConfig
from videoauto_jax.data.visuals import ReaderName
from videoauto_jax.errors import ConfigError
from videoauto_jax.models.rope import Convention
from videoauto_jax.protocol.prompts import system_prompt


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data sets and how they are read.

    Attributes:
        names: data sets to use, in order.
        sets: where each data set lies.
        root: folder that relative paths of `sets` start from.
        prompt: the system prompt's mode.
        image, video: budgets of sets that state none.
        max_prompt_tokens: longer prompts are skipped by name.
        manifest: file that `videoauto data check` writes; training leaves out what it lists as damaged or too long.
        video_prompt, position_convention, resize, video_reader: how prompts are made, see `data.processor.Processor`.
        workers: processes (training) or threads (evaluation) that decode and encode.
        prefetch: batches kept ready.
        prompt_lengths: ladder of padded prompt lengths; null: powers of two and half-way steps. Longer prompts than its
            last are skipped by name by GRPO.
        patch_counts: the same for the packed patches of a batch.
        branch_lengths: the same for the branches' part of group rows.
    """

    names: tuple[str, ...] = ()
    sets: dict[str, DatasetConfig] = dataclasses.field(default_factory=dict)
    root: str = ""
    prompt: Literal["answer_twice", "direct", "cot"] = "answer_twice"
    image: ImageBudget = ImageBudget()
    video: VideoBudget = VideoBudget()
    max_prompt_tokens: int | None = 8192
    manifest: str = ""
    video_prompt: VideoPrompt = "inner"
    position_convention: Convention = "upstream"
    resize: ResizeMode = "upstream"
    video_reader: ReaderName = "pyav"
    workers: int = 4
    prefetch: int = 1
    prompt_lengths: tuple[int, ...] | None = None
    patch_counts: tuple[int, ...] | None = None
    branch_lengths: tuple[int, ...] | None = None

    def samples(
        self, variant: Literal["train", "eval", "demo"] = "train", *, keep_missing: bool = False
    ) -> list[Sample]:
        """All samples, without those whose media are missing unless they are to be kept.

        Args:
            variant: of the system prompt.

        Raises:
            ConfigError: no data set is named.
        """
        if not self.names:
            fix = f"Name some of: {', '.join(self.sets) or '(none)'}"
            raise ConfigError("no data sets", where="data.names", fix=fix)
        text = system_prompt(self.prompt, variant=variant)
        budgets = {"image": self.image, "video": self.video}
        return load_datasets(self.names, self.rooted_sets(), text, **budgets, keep_missing=keep_missing)

    def rooted_sets(self) -> dict[str, DatasetConfig]:
        """The sets with `root` before their paths."""
        return {name: self._rooted(one) for name, one in self.sets.items()}

    def _rooted(self, one: DatasetConfig) -> DatasetConfig:
        join = lambda path: os.path.join(self.root, path) if path else path  # noqa: E731
        return dataclasses.replace(one, anno_path=join(one.anno_path), data_path=join(one.data_path))

    def processor(self, model: str) -> Processor:
        """The processor of a checkpoint folder, with the options of this recipe.

        Raises:
            ModelError: as `Processor.from_pretrained`.
        """
        names = ("max_prompt_tokens", "video_prompt", "position_convention", "resize", "video_reader")
        return load_processor(model, **{name: getattr(self, name) for name in names})

    def within_ladder(self) -> "DataConfig":
        """The same without prompts that the last of `prompt_lengths` does not hold: they are skipped by name too."""
        if self.prompt_lengths is None:
            return self
        longest = max(self.prompt_lengths)
        return dataclasses.replace(self, max_prompt_tokens=min(longest, self.max_prompt_tokens or longest))

    def stream(self, batch_size: int, seed: int) -> StreamConfig:
        """How this data is drawn in training batches; it never ends, the run's length does."""
        return StreamConfig(
            batch_size,
            seed=seed,
            workers=self.workers,
            prefetch=self.prefetch,
            max_prompt_tokens=self.max_prompt_tokens,
        )
