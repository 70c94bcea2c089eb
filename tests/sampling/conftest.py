"""A model that says what a script says: logits depend on the position alone."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

END = "<|im_end|>"
FALLBACK = "Let's analyze the problem step by step."
CHATS = {
    name: [{"role": "user", "content": name[0] + " 1" * count}]
    for name, count in (("sure", 0), ("unsure", 50), ("lost", 100), ("wrong", 160))
}
SCRIPTS = {
    "sure": [("\\boxed{", 0.999), ("A", 0.99), ("}<think>It is red.</think>\\boxed{B}" + END, 0.999)],
    "unsure": [("\\boxed{", 0.999), ("C", 0.6), ("}<think>No, blue.</think>\\boxed{D}" + END, 0.999)],
    "lost": [(f"\\boxed{{{FALLBACK}}}<think>So.</think>\\boxed{{7}}" + END, 0.999)],
    "wrong": [("no box here" + END, 0.999)],
}
SETTINGS = {"max_new_tokens": 96, "prompts": 4, "temperature": 0.0}


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

    def forward(self, inputs, attention, embeddings, caches, order):
        return self(None, inputs.positions, attention)

    def __call__(self, x, positions, attention, caches=None):
        nothing = jnp.zeros((1, *positions.shape[1:], 1, 4))
        return self.table[positions[0] + 1], (nothing, nothing)

    def logits(self, hidden):
        return hidden


@pytest.fixture(scope="session")
def chats():
    """Conversations of different lengths, by name."""
    return CHATS


@pytest.fixture(scope="session")
def scripts():
    """What is said to each: a confident first answer, one that is not, the fallback, and no answer."""
    return SCRIPTS


@pytest.fixture
def scripted(tiny_processor):
    """`scripted({name: [(text, probability), …]}, **config)` gives a sampler.

    It continues those chats with those texts, each token of a text having the probability; the rest is spread evenly.
    In place of a name there may be a name and the beginning of the response.
    """

    def make(scripts, **config):
        size = len(tiny_processor.tokenizer) + 5
        table = np.zeros((1024, size), np.float32)
        for name, parts in scripts.items():
            name, *begun = (name,) if isinstance(name, str) else name
            messages = CHATS[name] + [{"role": "assistant", "content": text} for text in begun]
            position = tiny_processor.encode(messages).next_position
            for text, probability in parts:
                for token in tiny_processor.tokenizer(text)["input_ids"]:
                    assert not table[position].any(), "the scripts of two prompts meet: give them other lengths"
                    table[position] = np.log((1 - probability) / (size - 1))
                    table[position, token] = np.log(probability)
                    position += 1
        return Sampler(Scripted(jnp.asarray(table)), tiny_processor, SamplingConfig(**{**SETTINGS, **config}))

    return make


@pytest.fixture
def sampler(scripted):
    """It follows `scripts`."""
    return scripted(SCRIPTS)


@pytest.fixture
def answers(sampler):
    """`answers(**changes)`: the sampler's answer to each of the chats, with some settings changed for good."""

    def ask(**changes):
        sampler.config = dataclasses.replace(sampler.config, **changes)
        return dict(zip(CHATS, sampler(list(CHATS.values()))))

    return ask


@pytest.fixture(scope="session")
def teacher_forced():
    """`teacher_forced(model, prompt, tokens)`: float32 logits [R, V] of the tokens behind that prompt alone."""
    forward = jax.jit(lambda model, inputs: model(inputs))

    def run(model, prompt, tokens):
        count = len(tokens)
        inputs = ModelInputs(
            token_ids=np.append(prompt.token_ids, tokens)[None],
            positions=np.hstack([prompt.positions, np.stack([prompt.next_position + np.arange(count)] * 3)])[:, None],
            segment_ids=np.ones((1, len(prompt.token_ids) + count), np.int32),
            vision_index=np.append(prompt.vision_index, np.full(count, -1))[None],
            vision=prompt.vision,
        )
        return np.asarray(forward(model, inputs)[0, len(prompt.token_ids) - 1 : -1])

    return run
