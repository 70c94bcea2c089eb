"""Which tokens count, and their log-probabilities, against the published table."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.train.grpo import completion_mask, entropy_quantile, high_entropy_mask, selective_log_softmax

CASES = json.loads((Path(__file__).parents[1] / "data" / "grpo_cases.json").read_text())
EOS = CASES["eos_mask"]


def test_tokenizer_eos_alone_is_the_published_mask():
    np.testing.assert_array_equal(completion_mask(jnp.array(EOS["ids"]), [EOS["eos"]]), EOS["mask"])


def test_any_stop_token_ends_the_completion():
    # The last row ended with 8: published masks count its padding, ours stops at the stop token.
    ids = np.array(EOS["ids"])[[0, 4]]
    np.testing.assert_array_equal(completion_mask(ids, [EOS["eos"], 8]), [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])


def test_pad_token_may_be_a_stop_token():
    ids = jnp.array([[5, 6, 0, 0, 0], [0, 0, 0, 0, 0], [5, 6, 7, 8, 5]])
    np.testing.assert_array_equal(completion_mask(ids, [9, 0]).sum(-1), [3, 1, 5])


def test_lengths_end_what_no_stop_token_ends():
    ids = jnp.array([[5, 6, 7, 0, 0], [5, 9, 0, 0, 0]])
    np.testing.assert_array_equal(completion_mask(ids, [9], lengths=jnp.array([3, 5])).sum(-1), [3, 2])


def test_stop_tokens_may_change_without_compiling_again():
    traces = []
    masked = jax.jit(lambda ids, eos: traces.append(0) or completion_mask(ids, eos))
    ids = jnp.array([[5, 6, 9, 0]])
    assert masked(ids, jnp.array([9])).sum() == 3 and masked(ids, jnp.array([6])).sum() == 2
    assert len(traces) == 1


@pytest.mark.parametrize("row", CASES["high_entropy_mask"], ids=lambda row: str(row["threshold"]))
def test_published_entropy_masks(row):
    entropies, mask = (jnp.array(CASES["inputs"][name]) for name in ("entropies", "mask"))
    np.testing.assert_array_equal(high_entropy_mask(entropies, mask, row["threshold"]), row["mask"])


def test_entropy_quantile_is_that_of_the_valid_tokens():
    rng = np.random.default_rng(0)
    entropies = rng.uniform(0, 3, (7, 9)).astype(np.float32)
    mask = rng.uniform(size=(7, 9)) < 0.6
    for quantile in (0.0, 0.13, 0.5, 0.8, 1.0):
        expected = np.quantile(entropies[mask].astype(np.float64), quantile)
        np.testing.assert_allclose(entropy_quantile(entropies, mask, quantile), expected, rtol=1e-6)
    assert not high_entropy_mask(entropies, np.zeros_like(mask), 0.5).any()


def test_log_probs_are_float32_whatever_the_logits():
    case = CASES["selective_log_softmax"]
    for dtype in (jnp.float32, jnp.bfloat16):  # upstream's bfloat16 path gives case["bf16_input"]
        chosen = selective_log_softmax(jnp.array(case["logits"], dtype), jnp.array(case["index"]))
        assert chosen.dtype == jnp.float32
        np.testing.assert_allclose(chosen, case["fp32"], atol=2e-7)


def test_temperature_divides_the_logits():
    logits = np.random.default_rng(0).normal(0, 30, (4, 11))
    scaled = logits / 0.7
    expected = scaled[:, 3] - scaled.max(-1) - np.log(np.exp(scaled - scaled.max(-1, keepdims=True)).sum(-1))
    chosen = selective_log_softmax(jnp.float32(logits), jnp.full(4, 3), temperature=0.7)
    np.testing.assert_allclose(chosen, expected, rtol=1e-5, atol=1e-5)
