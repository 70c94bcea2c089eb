"""Prompts to answers with the recipe's model."""

import dataclasses
from collections.abc import Iterable, Iterator

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.models.config import read_config, resolve_folder
from videoauto_jax.models.hf import load_model
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.config import checkpoint_defaults
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.sharding import make_mesh


def check_model(config: EvalConfig) -> None:
    """Whether the recipe's model is one, without loading it.

    Raises:
        ModelError: it is not, or it cannot be reached.
    """
    read_config(config.model)


def as_sampled(config: EvalConfig, sampling: SamplingConfig) -> SamplingConfig:
    """The settings with what other parts of the recipe, and the checkpoint, say of them."""
    changes: dict = {"prompt_lengths": sampling.prompt_lengths or config.data.prompt_lengths}
    if config.checkpoint_penalty:
        stated = checkpoint_defaults(resolve_folder(config.model))
        changes["repetition_penalty"] = stated.get("repetition_penalty", sampling.repetition_penalty)
    return dataclasses.replace(sampling, **changes)


class ModelAnswerer:
    """The model of a recipe, which is loaded when first asked."""

    def __init__(self, config: EvalConfig, processor: Processor):
        self._config, self._processor = config, processor
        self._sampler: Sampler | None = None

    def stream(self, prompts: Iterable[Encoded], sampling: SamplingConfig) -> Iterator[tuple[int, Answer]]:
        """Answers as they are finished, each with the number of its prompt. Prompts are taken as slots become free."""
        for position, group in self._ready(sampling).stream(prompts):
            yield position, group[0]

    def _ready(self, sampling: SamplingConfig) -> Sampler:
        config = self._config
        sampling = as_sampled(config, sampling)
        if self._sampler is None:
            model = load_model(config.model, make_mesh(config.mesh), config.dtype)
            self._sampler = Sampler(model, self._processor, sampling)
        self._sampler.config = sampling
        return self._sampler
