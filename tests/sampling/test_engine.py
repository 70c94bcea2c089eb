"""The two device programs against the forward pass of whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.sampling import engine

SLOTS, BRANCHES = 10, 2


@pytest.fixture(scope="module")
def prompts(tiny_processor):
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    video = {"type": "video", "video": list(noise), "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
    chats = [[{"type": "text", "text": "Hi"}], [video, {"type": "text", "text": "What happens in the video, and why?"}]]
    return [tiny_processor.encode([{"role": "user", "content": content}]) for content in chats]


@pytest.fixture(scope="module")
def begun(tiny_model, tiny_processor, prompts):
    """The prompts' cache and first logits, and the automaton."""
    position = np.array([prompt.next_position for prompt in prompts], np.int32)
    automaton = compile_automaton(tiny_processor.tokenizer, tiny_model.config.text.vocab_size)
    return *engine.prefill(tiny_model, tiny_processor.collate(prompts), position), automaton


def settings(temperature=1.0, max_new_tokens=SLOTS, stop_ids=(-1,)):
    return engine.Settings(
        jnp.float32(temperature), jnp.float32(np.inf), jnp.int32(max_new_tokens), jnp.array(stop_ids, jnp.int32)
    )


def run(model, begun, *, logits=None, stops=(SLOTS,), **options):
    """Decodes in stages that end at `stops`."""
    cache, first, automaton = begun
    keys = np.arange(2 * BRANCHES, dtype=np.uint32).reshape(2, BRANCHES)
    state = engine.start(cache, first if logits is None else logits, keys, branches=BRANCHES, slots=SLOTS)
    for until in stops:
        state = engine.decode(model, cache, state, automaton, settings(**options), jnp.int32(until))
    return jax.device_get(state)


def teacher_forced(model, prompt, tokens):
    """Float32 logits [R, V] of the tokens behind an unshared, unpadded prompt."""
    count = len(tokens)
    inputs = ModelInputs(
        token_ids=np.append(prompt.token_ids, tokens)[None],
        positions=np.hstack([prompt.positions, np.stack([prompt.next_position + np.arange(count)] * 3)])[:, None],
        segment_ids=np.ones((1, len(prompt.token_ids) + count), np.int32),
        vision_index=np.append(prompt.vision_index, np.full(count, -1))[None],
        vision=prompt.vision,
    )
    logits = jax.jit(lambda model, inputs: model(inputs))(model, inputs)
    return np.asarray(logits[0, len(prompt.token_ids) - 1 : -1])


def test_decoding_equals_the_forward_pass_of_whole_rows(tiny_model, begun, prompts):
    state = run(tiny_model, begun, temperature=0.7)
    assert len({tuple(row) for row in state.tokens.reshape(-1, SLOTS)}) == 2 * BRANCHES
    for b, prompt in enumerate(prompts):
        for g in range(BRANCHES):
            logits, tokens = teacher_forced(tiny_model, prompt, state.tokens[b, g]), state.tokens[b, g]
            for field, divisor in (("log_probs", 1.0), ("sampling_log_probs", 0.7)):
                expected = jax.nn.log_softmax(logits / divisor)[np.arange(SLOTS), tokens]
                np.testing.assert_allclose(getattr(state, field)[b, g], expected, atol=1e-4)


def test_greedy_tokens_are_the_largest_logits(tiny_model, begun, prompts):
    state = run(tiny_model, begun, temperature=0.0)
    for b, prompt in enumerate(prompts):
        np.testing.assert_array_equal(state.tokens[b, 0], state.tokens[b, 1])
        logits = teacher_forced(tiny_model, prompt, state.tokens[b, 0])
        np.testing.assert_array_equal(logits.argmax(-1), state.tokens[b, 0])


def test_stages_are_one_run(tiny_model, begun):
    whole, staged = run(tiny_model, begun), run(tiny_model, begun, stops=(1, 4, 4, SLOTS))
    for field in ("tokens", "log_probs", "length", "finish"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(staged, field), err_msg=field)


def test_why_a_branch_ends(tiny_model, begun):
    free = run(tiny_model, begun)
    assert (free.finish == engine.LENGTH).all() and (free.length == SLOTS).all()
    short = run(tiny_model, begun, max_new_tokens=4)
    assert (short.finish == engine.LENGTH).all() and (short.length == 4).all() and short.step == 4
    np.testing.assert_array_equal(short.tokens[..., :4], free.tokens[..., :4])
    stop = free.tokens[1, 0, 3]
    stopped = run(tiny_model, begun, stop_ids=(stop,))
    first = free.tokens[1, 0].tolist().index(stop) + 1
    assert stopped.finish[1, 0] == engine.STOPPED and stopped.length[1, 0] == first
    np.testing.assert_array_equal(stopped.tokens[1, 0, :first], free.tokens[1, 0, :first])
    assert (stopped.tokens[1, 0, first:] == 0).all()
    going = [g for g in range(BRANCHES) if stop not in free.tokens[0, g]]
    np.testing.assert_array_equal(stopped.tokens[0, going], free.tokens[0, going])  # the others go on as they were


def test_a_branch_without_numbers_fails_alone(tiny_model, begun):
    free, logits = run(tiny_model, begun), np.array(begun[1])
    logits[0, 5] = np.nan
    state = run(tiny_model, begun, logits=jnp.asarray(logits))
    assert (state.finish[0] == engine.FAILED).all() and (state.length[0] == 1).all()
    np.testing.assert_array_equal(state.tokens[1], free.tokens[1])
    np.testing.assert_array_equal(state.log_probs[1], free.log_probs[1])


def test_new_weights_compile_nothing(tiny_model, begun):
    run(tiny_model, begun)
    before = engine.decode._cache_size()
    other = jax.tree.map(lambda leaf: leaf * 1.1, tiny_model)
    changed = run(other, begun, temperature=0.3)
    assert engine.decode._cache_size() == before and not dataclasses.is_dataclass(other)
    assert (changed.tokens != run(tiny_model, begun, temperature=0.3).tokens).any()
