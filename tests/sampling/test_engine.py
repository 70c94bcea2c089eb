"""Prefill, admission and decoding against the forward pass of whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.data.processor import load_processor
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.sampling import cache, engine
from videoauto_jax.sampling.draw import Sampling
from videoauto_jax.sampling.slots import EMPTY, FAILED, LENGTH, RUNNING, STOPPED, empty

SLOTS, BRANCHES = 10, 2


@pytest.fixture(scope="module")
def prompts(tiny_processor):
    return encoded(tiny_processor)


@pytest.fixture(scope="module")
def begun(tiny_model, tiny_processor, prompts):
    return prefilled(tiny_model, tiny_processor, prompts)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def family(request, checkpoint):
    """A model, its prompts, and what `prefilled` gives."""
    folder = checkpoint(request.param, tied=request.param == "qwen3_vl")
    model, processor = load_model(folder, dtype="float32"), load_processor(folder)
    prompts = encoded(processor)
    return model, prompts, prefilled(model, processor, prompts)


def encoded(processor):
    """A text, and a video with a question."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    video = {"type": "video", "video": list(noise), "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
    chats = [[{"type": "text", "text": "Hi"}], [video, {"type": "text", "text": "What happens in the video, and why?"}]]
    return [processor.encode([{"role": "user", "content": content}]) for content in chats]


def prefilled(model, processor, prompts):
    """The prompts' cache and first logits, and the automaton."""
    inputs = processor.collate(prompts)
    position = np.array([prompt.next_position for prompt in prompts], np.int32)
    automaton = compile_automaton(processor.tokenizer, model.config.text.vocab_size)
    embeddings = cache.embed_vision(model, inputs.vision)
    inputs, capacity = dataclasses.replace(inputs, vision=None), inputs.token_ids.shape[1]
    offset = np.zeros(2, np.int32)
    return *cache.prefill(model, None, inputs, offset, position, embeddings, capacity=capacity), automaton


def settings(temperature=1.0, max_new_tokens=SLOTS, stop_ids=(-1,)):
    plain = jnp.int32(0), jnp.float32(1), jnp.float32(0), jnp.float32(1), jnp.bool_(False)
    sampling = Sampling(jnp.float32(temperature), *plain)
    return engine.Settings(sampling, jnp.float32(np.inf), jnp.int32(max_new_tokens), jnp.array(stop_ids, jnp.int32))


def admitted(begun, *, slots=2, index=(0, 1), logits=None, **options):
    """Both prompts in their slots, their first tokens written."""
    prompts, first, automaton = begun
    keys = np.arange(2 * BRANCHES, dtype=np.uint32).reshape(2, BRANCHES)
    sizes = {"slots": slots, "branches": BRANCHES, "tokens": SLOTS, "vocabulary": first.shape[1]}
    state = empty(prompts, **sizes)
    arguments = jax.tree.map(jnp.copy, prompts), first if logits is None else logits, np.array(index, np.int32)
    arguments += np.full((2, 4), -1, np.int32), keys, np.zeros(2, np.int32)
    return engine.admit(state, *arguments, automaton, settings(**options), whole=slots == 2 and index == (0, 1))


def run(model, begun, *, most=(SLOTS,), enough=0, reach=SLOTS, options=None, **changes):
    """Everything decoded, in calls of at most `most` steps; host branches and the last call's `Used`."""
    state = admitted(begun, **changes, **(options or {}))
    for steps in most:
        state, used = engine.decode(
            model, state, begun[2], settings(**(options or {})), jnp.int32(steps), jnp.int32(enough), reach=reach
        )
    return jax.device_get(state.branches), jax.device_get(used)


def assert_same(found, expected, slots=slice(None), of=slice(None)):
    for field in ("tokens", "length", "finish"):
        np.testing.assert_array_equal(getattr(found, field)[slots], getattr(expected, field)[of], err_msg=field)
    np.testing.assert_allclose(found.log_probs[slots], expected.log_probs[of], atol=1e-5)


def test_decoding_equals_the_forward_pass_of_whole_rows(family, teacher_forced):
    model, prompts, begun = family
    written, _ = run(model, begun, options={"temperature": 0.7})
    assert len({tuple(row) for row in written.tokens.reshape(-1, SLOTS)}) == 2 * BRANCHES
    for b, prompt in enumerate(prompts):
        for g in range(BRANCHES):
            tokens = written.tokens[b, g]
            logits = teacher_forced(model, prompt, tokens)
            for field, divisor in (("log_probs", 1.0), ("sampling_log_probs", 0.7)):
                expected = jax.nn.log_softmax(logits / divisor)[np.arange(SLOTS), tokens]
                np.testing.assert_allclose(getattr(written, field)[b, g], expected, atol=1e-4)


def test_greedy_tokens_are_the_largest_logits(family, teacher_forced):
    model, prompts, begun = family
    written, _ = run(model, begun, options={"temperature": 0.0})
    for b, prompt in enumerate(prompts):
        np.testing.assert_array_equal(written.tokens[b, 0], written.tokens[b, 1])
        logits = teacher_forced(model, prompt, written.tokens[b, 0])
        np.testing.assert_array_equal(logits.argmax(-1), written.tokens[b, 0])


def test_calls_slots_and_reach_change_nothing(tiny_model, begun):
    whole, used = run(tiny_model, begun)
    assert (used.steps, used.useful) == (SLOTS - 1, 2 * BRANCHES * (SLOTS - 1))  # the first token needs no step
    assert_same(run(tiny_model, begun, most=(1, 3, 0, SLOTS))[0], whole)
    assert_same(run(tiny_model, begun, most=(3,), reach=4)[0], run(tiny_model, begun, most=(3,))[0])
    elsewhere, _ = run(tiny_model, begun, slots=4, index=(3, 1))
    np.testing.assert_array_equal(elsewhere.tokens[[3, 1]], whole.tokens)
    np.testing.assert_allclose(elsewhere.log_probs[[3, 1]], whole.log_probs, atol=1e-4)
    assert (elsewhere.finish[[0, 2]] == EMPTY).all() and not elsewhere.length[[0, 2]].any()


def test_why_a_branch_ends(tiny_model, begun):
    free, _ = run(tiny_model, begun)
    assert (free.finish == LENGTH).all() and (free.length == SLOTS).all()
    short, used = run(tiny_model, begun, options={"max_new_tokens": 4})
    assert (short.finish == LENGTH).all() and (short.length == 4).all() and used.steps == 3
    np.testing.assert_array_equal(short.tokens[..., :4], free.tokens[..., :4])
    stop = free.tokens[1, 0, 3]
    stopped, _ = run(tiny_model, begun, options={"stop_ids": (stop,)})
    first = free.tokens[1, 0].tolist().index(stop) + 1
    assert stopped.finish[1, 0] == STOPPED and stopped.length[1, 0] == first
    np.testing.assert_array_equal(stopped.tokens[1, 0, :first], free.tokens[1, 0, :first])
    assert (stopped.tokens[1, 0, first:] == 0).all()
    going = [g for g in range(BRANCHES) if stop not in free.tokens[0, g]]
    np.testing.assert_array_equal(stopped.tokens[0, going], free.tokens[0, going])  # the others go on as they were


def test_decoding_returns_when_enough_prompts_have_ended(tiny_model, begun):
    free, _ = run(tiny_model, begun)
    own = [[token for token in row[1:6] if token not in free.tokens[0]] for row in free.tokens[1]]
    stops = [row[0] for row in own]  # both branches of the second prompt end
    written, used = run(tiny_model, begun, enough=1, options={"stop_ids": tuple(stops)})
    assert (written.finish[1] == STOPPED).all() and (written.finish[0] == RUNNING).all()
    assert used.steps == written.length.max() - 1 < SLOTS - 1


def test_a_branch_without_numbers_fails_alone(family):
    model, _, begun = family
    free, _ = run(model, begun)
    logits = np.array(begun[1])
    logits[0, 5] = np.nan
    written, _ = run(model, begun, logits=jnp.asarray(logits))
    assert (written.finish[0] == FAILED).all() and (written.length[0] == 0).all()
    assert_same(written, free, 1, 1)


def test_pieces_and_prefixes_give_the_cache_of_the_whole(tiny_model, begun, prompts):
    """A prompt in pieces, the last of which overlaps with what is there; from another slot's prefix too."""
    expected, logits, _ = begun
    prompt, capacity = prompts[1], expected.capacity
    count = len(prompt.token_ids)
    embeddings = cache.embed_vision(tiny_model, prompt.vision)
    before, position = None, np.array([prompt.next_position], np.int32)
    for start, width in ((0, 16), (16, 16), (24, count - 24)):
        here = slice(start, start + width)
        inputs = ModelInputs(
            prompt.token_ids[None, here], prompt.positions[:, None, here], np.ones((1, width), np.int32),
            prompt.vision_index[None, here], None,
        )  # fmt: skip
        arguments = inputs, np.array([start], np.int32), position, embeddings
        before, found = cache.prefill(tiny_model, before, *arguments, capacity=capacity)
    np.testing.assert_allclose(found[0], logits[1], atol=2e-5)
    np.testing.assert_allclose(before.k[:, 0, :count], expected.k[:, 1, :count], atol=2e-5)
    assert before.length[0] == expected.length[1] == count
    copied = cache.copy_prompts(expected, np.array([1], np.int32))
    _, again = cache.prefill(tiny_model, copied, *arguments, capacity=capacity)
    np.testing.assert_allclose(again[0], logits[1], atol=2e-5)


def test_new_weights_compile_nothing(tiny_model, begun):
    run(tiny_model, begun)
    before = engine.decode._cache_size()
    other = jax.tree.map(lambda leaf: leaf * 1.1, tiny_model)
    changed, _ = run(other, begun, options={"temperature": 0.3})
    assert engine.decode._cache_size() == before and not dataclasses.is_dataclass(other)
    assert (changed.tokens != run(tiny_model, begun, options={"temperature": 0.3})[0].tokens).any()
