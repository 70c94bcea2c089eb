"""Logits that are not numbers: the branch fails, and nothing of it reaches whoever takes its slot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.models.hf import load_model
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

CONFIG = SamplingConfig(mode="second", max_new_tokens=12, temperature=1.0, prompts=1, seed=3, reuse_prefixes=False)
LONG = "A long question about what happens in the video, and why. " * 3


def chat(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def model(untied_folder):
    """Its head is its own: a spoilt row of the embedding is met only where the token is read."""
    return load_model(untied_folder, dtype="float32")


def spoilt(model, token):
    """The model, but one token's embedding is not a number."""
    path = lambda where: jax.tree_util.keystr(where)  # noqa: E731
    row = lambda leaf: leaf.at[token].set(jnp.nan)  # noqa: E731
    return jax.tree_util.tree_map_with_path(
        lambda at, x: row(x) if "embed" in path(at) and "text" in path(at) else x, model
    )


def token_of(processor, text):
    (token,) = processor.tokenizer(text)["input_ids"]
    return token


def assert_equal(found, expected):
    assert [answer.finish_reason for answer in found] == [answer.finish_reason for answer in expected]
    for mine, other in zip(found, expected):
        np.testing.assert_array_equal(mine.token_ids, other.token_ids)
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("dtype", ["model", "int8"])
def test_a_prompt_without_numbers_leaves_nothing_in_its_slot(model, tiny_processor, dtype):
    broken, config = spoilt(model, token_of(tiny_processor, "~")), dataclasses.replace(CONFIG, cache_dtype=dtype)
    expected = Sampler(model, tiny_processor, config).rollout([chat("What happens?")], branches=2)[0]
    assert all("~" not in answer.text for answer in expected)
    sampler = Sampler(broken, tiny_processor, config)
    bad, good = sampler.rollout([chat("What ~ happens?"), chat("What happens?")], branches=2)
    for answer in bad:
        assert (answer.finish_reason, answer.text, len(answer.token_ids), answer.confidence) == ("nan", "", 0, -1)
    assert_equal(good, expected)


def test_nor_for_the_next_call_or_a_prompt_with_the_same_beginning(model, tiny_processor):
    broken = spoilt(model, token_of(tiny_processor, "~"))
    config = dataclasses.replace(CONFIG, reuse_prefixes=True, prompts=2)
    expected = Sampler(model, tiny_processor, config).rollout([chat(LONG + "Why?")], branches=1)[0]
    sampler = Sampler(broken, tiny_processor, config)
    (bad,), good = sampler.rollout([chat(LONG + "~?"), chat(LONG + "Why?")], branches=1)  # both on their way at once
    assert bad.finish_reason == "nan"
    assert_equal(good, expected)
    sampler = Sampler(broken, tiny_processor, dataclasses.replace(config, prompts=1))
    assert sampler([chat(LONG + "~?")])[0].finish_reason == "nan"
    assert_equal(sampler([chat(LONG + "Why?")]), expected)
    assert sampler.usage.reused == 0


@pytest.mark.parametrize("dtype", ["model", "float8_e4m3fn"])
def test_a_branch_that_fails_while_it_decodes_fails_alone(model, tiny_processor, dtype):
    """One that writes a token whose embedding is not a number ends behind it; its neighbour and its heirs do not."""
    config = dataclasses.replace(CONFIG, cache_dtype=dtype)
    questions = [chat("What happens?"), chat("And why does it happen?")]
    clean = Sampler(model, tiny_processor, config).rollout(questions, branches=2)
    (one, other), heirs = clean
    elsewhere = np.concatenate([other.token_ids, *(heir.token_ids for heir in heirs)])
    prompts = np.concatenate([tiny_processor.encode(question).token_ids for question in questions])
    count, token = next(
        (n, token) for n, token in enumerate(one.token_ids.tolist()[:-1], 1)
        if n > 1 and token not in elsewhere and token not in prompts and token not in one.token_ids[: n - 1]
    )  # fmt: skip
    found = Sampler(spoilt(model, token), tiny_processor, config).rollout(questions, branches=2)
    failed = found[0][0]
    assert failed.finish_reason == "nan" and np.isfinite(failed.logprobs).all()
    np.testing.assert_array_equal(failed.token_ids, one.token_ids[:count])
    np.testing.assert_allclose(failed.logprobs, one.logprobs[:count], atol=1e-4)
    assert_equal(found[0][1:], [other])
    assert_equal(found[1], heirs)
