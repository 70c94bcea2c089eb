"""A model that says what a script says: logits depend on the position alone."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.sampling.sampler import Sampler, SamplingConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scripted:
    """Stands in for a `QwenVL`. `table[p]` are the logits of the token at position p."""

    table: jax.Array

    @property
    def config(self):
        return types.SimpleNamespace(text=types.SimpleNamespace(vocab_size=self.table.shape[1]))

    @property
    def text(self):
        return self

    @property
    def dtype(self):
        return jnp.float32

    def embed(self, token):
        return jnp.zeros((*token.shape, 4))

    def forward(self, inputs, attention, embeddings, caches):
        return self(None, inputs.positions, attention)

    def __call__(self, x, positions, attention, caches=None):
        nothing = jnp.zeros((1, *positions.shape[1:], 1, 4))
        return self.table[positions[0] + 1], (nothing, nothing)

    def logits(self, hidden):
        return hidden


@pytest.fixture
def scripted(tiny_processor):
    """`scripted({prompt: [(text, probability), …]}, **config)` gives a sampler.

    It continues the prompt with those texts, each token of a text having the probability; the rest is spread evenly.
    A prompt is a text, or a text and the beginning of its response.
    """

    def make(scripts, **config):
        size = len(tiny_processor.tokenizer) + 5
        table = np.zeros((1024, size), np.float32)
        for prompt, parts in scripts.items():
            position = tiny_processor.encode(chat(prompt)).next_position
            for text, probability in parts:
                for token in tiny_processor.tokenizer(text)["input_ids"]:
                    assert not table[position].any(), "the scripts of two prompts meet: give them other lengths"
                    table[position] = np.log((1 - probability) / (size - 1))
                    table[position, token] = np.log(probability)
                    position += 1
        return Sampler(Scripted(jnp.asarray(table)), tiny_processor, SamplingConfig(**config))

    return make


def chat(prompt):
    said = (prompt,) if isinstance(prompt, str) else prompt
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said)]
