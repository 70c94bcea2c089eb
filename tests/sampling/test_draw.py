"""Which tokens are drawn from, against transformers' processors; what switching them on costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.sampling.draw import Sampling, draw

SIZE, BRANCHES = 50, 64
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "forced": False}
CASES = [
    {"top_k": 5}, {"top_k": 500}, {"top_p": 0.7}, {"top_p": 0.01}, {"min_p": 0.1}, {"repetition_penalty": 1.3},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 0.6, "repetition_penalty": 1.05},
]  # fmt: skip

program = jax.jit(lambda logits, seen, allowed, keys, how: draw(logits, seen, lambda: allowed, keys, keys * 0, how))


def drawn(logits, seen=None, allowed=None, **changes):
    """Many branches with the same logits [V]."""
    how = OFF | changes
    kinds = {"top_k": jnp.int32, "forced": jnp.bool_}
    how = Sampling(**{name: kinds.get(name, jnp.float32)(value) for name, value in how.items()})
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x), (BRANCHES, 1, SIZE))  # noqa: E731
    seen = np.zeros(SIZE, bool) if seen is None else seen
    allowed = np.ones(SIZE, bool) if allowed is None else allowed
    keys = jnp.arange(BRANCHES, dtype=jnp.uint32)[:, None]
    return jax.device_get(program(spread(logits), spread(seen), spread(allowed), keys, how))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 2, SIZE).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_distribution_is_that_of_transformers(case, logits):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    case = OFF | case
    written = torch.tensor([[3, 7, 7, int(logits.argmax())]])
    scores = theirs.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(written, torch.tensor(logits)[None])
    penalised = torch.log_softmax(scores, -1)[0].numpy()
    scores = theirs.TemperatureLogitsWarper(case["temperature"])(written, scores)
    for name, warper, off in (("top_k", theirs.TopKLogitsWarper, 0), ("top_p", theirs.TopPLogitsWarper, 1.0),
                              ("min_p", theirs.MinPLogitsWarper, 0.0)):  # fmt: skip
        scores = scores if case[name] == off else warper(case[name])(written, scores)
    expected = torch.log_softmax(scores, -1)[0].numpy()
    seen = np.isin(np.arange(SIZE), written.numpy())
    found = drawn(logits, seen, **case)
    assert np.isfinite(expected[found.token]).all() and (len(np.unique(found.token)) > 1 or case["top_p"] == 0.01)
    np.testing.assert_allclose(found.sampling_log_prob, expected[found.token], atol=1e-5)
    np.testing.assert_allclose(found.penalised_log_prob, penalised[found.token], atol=1e-5)
    np.testing.assert_allclose(found.log_prob, jax.nn.log_softmax(logits)[found.token], atol=1e-5)


def test_only_allowed_tokens_are_drawn(logits):
    allowed = np.arange(SIZE) % 7 == 1
    for temperature in (0.0, 1.0):
        found = drawn(logits, allowed=allowed, forced=True, temperature=temperature)
        assert allowed[found.token].all()
        np.testing.assert_allclose(found.log_prob, jax.nn.log_softmax(logits)[found.token], atol=1e-5)
        np.testing.assert_allclose(
            found.sampling_log_prob, jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))[found.token], atol=1e-5
        )
    assert not allowed[drawn(logits, allowed=allowed).token].all()


def test_greedy_takes_the_largest_after_the_penalty(logits):
    seen = np.arange(SIZE) == logits.argmax()
    found = drawn(logits, seen, temperature=0.0, repetition_penalty=100.0, top_k=3)
    assert (found.token == np.argsort(logits)[-2]).all()
    assert (drawn(logits, seen, temperature=0.0, top_k=3).token == logits.argmax()).all()


def test_no_choice_compiles_another_program(logits):
    drawn(logits)
    before = program._cache_size()
    for case in CASES:
        drawn(logits, **case)
    drawn(logits, temperature=0.0, forced=True)
    assert program._cache_size() == before
