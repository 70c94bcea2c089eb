"""Prompts to answers with the recipe's model."""

from collections.abc import Iterable, Iterator

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.models.hf import load_model
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.sharding import make_mesh, place_inputs


class ModelAnswerer:
    """The model of a recipe, which is loaded when the first prompt arrives."""

    def __init__(self, config: EvalConfig, processor: Processor):
        self._config, self._processor = config, processor
        self._sampler: Sampler | None = None

    def stream(self, prompts: Iterable[Encoded], sampling: SamplingConfig) -> Iterator[tuple[int, Answer]]:
        """Answers as they are finished, each with the number of its prompt. Prompts are taken as slots become free."""
        prompts = iter(prompts)
        first = next(prompts, None)
        if first is None:
            return
        sampler = self._ready(sampling)
        position, batch = 0, [first]
        for prompt in prompts:
            if len(batch) == sampling.prompts:
                yield from self._answer(sampler, batch, position)
                position, batch = position + len(batch), []
            batch.append(prompt)
        yield from self._answer(sampler, batch, position)

    def _answer(self, sampler: Sampler, prompts: list[Encoded], start: int) -> Iterator[tuple[int, Answer]]:
        # A short batch repeats its first prompt rather than compiling for another number of rows.
        rows = [*prompts, *[prompts[0]] * (sampler.config.prompts - len(prompts))]
        data = self._config.data
        inputs = self._processor.collate(rows, lengths=data.prompt_lengths, patches=data.patch_counts)
        groups = sampler.generate(prompts, 1, inputs=place_inputs(inputs, self._mesh))
        yield from ((start + n, group[0]) for n, group in enumerate(groups))

    def _ready(self, sampling: SamplingConfig) -> Sampler:
        if self._sampler is None:
            self._mesh = make_mesh(self._config.mesh)
            model = load_model(self._config.model, self._mesh, self._config.dtype)
            self._sampler = Sampler(model, self._processor, sampling)
        self._sampler.config = sampling
        return self._sampler
