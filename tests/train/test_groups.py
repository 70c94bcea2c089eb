"""Group rows against one row per branch: log-probabilities, and the gradient of every parameter."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoauto_jax.errors import DataError
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.train.groups import branch_log_probs, branch_scores, pack_groups

RNG = np.random.default_rng(0)
BRANCHES = [[5, 1, 7], [3, 6, 2]]  # lengths


@pytest.fixture(scope="module")
def prompts(tiny_processor):
    frames = list(RNG.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
    video = {"type": "video", "video": frames, "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
    content = [video, {"type": "text", "text": "What happens?"}]
    chats = [[{"role": "user", "content": content}], [{"role": "user", "content": "Hi"}]]
    return [tiny_processor.encode(messages) for messages in chats]


@pytest.fixture(scope="module")
def branches():
    return [[RNG.integers(0, 384, length).astype(np.int32) for length in lengths] for lengths in BRANCHES]


def packed(processor, prompts, branches, **options):
    positions = [prompt.next_position for prompt in prompts]
    return pack_groups(processor.collate(prompts), positions, branches, **({"bound": 8} | options))


def one_row(processor, prompt, branch):
    """The prompt and one branch as an ordinary row."""
    count = len(branch)
    positions = np.stack([prompt.next_position + np.arange(count)] * 3)
    whole = dataclasses.replace(
        prompt,
        token_ids=np.append(prompt.token_ids, branch),
        positions=np.hstack([prompt.positions, positions]),
        vision_index=np.append(prompt.vision_index, np.full(count, -1)),
    )
    return processor.collate([whole])


def test_log_probs_and_every_gradient_are_those_of_separate_rows(tiny_model, tiny_processor, prompts, branches):
    batch, weights = packed(tiny_processor, prompts, branches), RNG.normal(size=(2, 3, 8)).astype(np.float32)
    graph, state = nnx.split(tiny_model)

    @partial(jax.jit, static_argnums=4)
    def alone(state, inputs, branch, weight, length):
        def score(state):
            rows = jnp.arange(8) + length - 1
            logits = nnx.merge(graph, state)(inputs)[0, rows] / 0.8
            log_probs = jax.nn.log_softmax(logits)[jnp.arange(8), branch]
            return jnp.sum(jnp.where(weight == 0, 0, log_probs * weight)), log_probs

        return jax.grad(score, has_aux=True)(state)

    @jax.jit
    def grouped(state):
        def score(state):
            found = branch_log_probs(nnx.merge(graph, state), batch, temperature=0.8, remat=True, chunk=16)
            return jnp.sum(found * weights), found

        return jax.grad(score, has_aux=True)(state)

    grads, found = grouped(state)
    assert (np.asarray(found)[~batch.mask] == 0).all()
    total = jax.tree.map(jnp.zeros_like, state)
    for b, prompt in enumerate(prompts):
        for g, branch in enumerate(branches[b]):
            count, inputs = len(branch), one_row(tiny_processor, prompt, branch)
            weight = np.where(np.arange(8) < count, weights[b, g], 0)
            part, expected = alone(state, inputs, np.resize(branch, 8), weight, len(prompt.token_ids))
            np.testing.assert_allclose(found[b, g, :count], expected[:count], atol=1e-5)
            total = jax.tree.map(jnp.add, total, part)
    expected = parameter_paths(total)
    for path, grad in parameter_paths(grads).items():
        scale = np.abs(expected[path]).max()
        assert scale > 0, path
        np.testing.assert_allclose(grad, expected[path], atol=2e-5 * max(scale, 1), err_msg=path)


def test_entropies_are_those_of_the_whole_distribution(tiny_model, tiny_processor, prompts, branches):
    batch = packed(tiny_processor, prompts, branches)
    options = {"temperature": 0.8, "entropies": True, "chunk": 16}
    _, found = jax.jit(partial(branch_scores, **options))(tiny_model, batch)
    inputs = one_row(tiny_processor, prompts[0], branches[0][2])
    length, count = len(prompts[0].token_ids), len(branches[0][2])
    rows = np.asarray(tiny_model(inputs), np.float64)[0, length - 1 : length - 1 + count] / 0.8
    probabilities = np.exp(rows - rows.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = -np.sum(probabilities * np.log(probabilities), -1)
    np.testing.assert_allclose(found[0, 2, :count], expected, atol=1e-4)
    assert (np.asarray(found)[~batch.mask] == 0).all()


def test_features_computed_before_give_the_same(tiny_model, tiny_processor, prompts, branches):
    batch = packed(tiny_processor, prompts, branches)
    features = tiny_model.encode_vision(batch.inputs.vision)
    score = jax.jit(branch_log_probs)
    np.testing.assert_allclose(score(tiny_model, batch, features), score(tiny_model, batch), atol=1e-5)


def test_a_bound_on_branches_changes_nothing(tiny_model, tiny_processor, prompts, branches):
    """With a bound far below the width of the branches' part, attention runs in a band."""
    wide = packed(tiny_processor, prompts, branches, bound=64)
    banded = packed(tiny_processor, prompts, branches, bound=8)
    assert banded.branch_bound * 3 < banded.targets.shape[1] <= wide.branch_bound * 3
    score = jax.jit(branch_log_probs)
    np.testing.assert_allclose(score(tiny_model, wide)[..., :8], score(tiny_model, banded), atol=1e-5)


def test_layout_of_a_row(tiny_processor, prompts, branches):
    batch = packed(tiny_processor, prompts, branches, count=4)
    inputs, width, row = batch.inputs, batch.prompt_length, 1
    length = len(prompts[row].token_ids)
    assert width == tiny_processor.collate(prompts).token_ids.shape[1] and batch.branch_bound == 8
    assert inputs.token_ids.shape == (2, width + 64) and batch.mask.shape == batch.place.shape == (2, 4, 8)
    np.testing.assert_array_equal(inputs.token_ids[row, :length], prompts[row].token_ids)
    np.testing.assert_array_equal(inputs.token_ids[row, width : width + 11], np.concatenate(branches[row]))
    np.testing.assert_array_equal(inputs.segment_ids[row], [1] * length + [0] * (width - length)
                                  + [2] * 3 + [3] * 6 + [4] * 2 + [0] * 53)  # fmt: skip
    steps = prompts[row].next_position + np.array([0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1])
    for axis in range(3):
        np.testing.assert_array_equal(inputs.positions[axis, row, width : width + 11], steps)
    assert (inputs.vision_index[:, width:] == -1).all()
    # A branch's first token is predicted by the last of the prompt, the others by the one before them.
    last, behind = length - 1, width
    sources = [last, behind, behind + 1, last, *range(behind + 3, behind + 8), last, behind + 9]
    np.testing.assert_array_equal(batch.source[row, :11], sources)
    for g, branch in enumerate(branches[row]):
        np.testing.assert_array_equal(batch.targets[row][batch.place[row, g]][batch.mask[row, g]], branch)
    assert not batch.mask[:, 3].any()


def test_the_ladder_decides_the_width(tiny_processor, prompts, branches):
    assert packed(tiny_processor, prompts, branches, lengths=(13, 20)).targets.shape == (2, 13)
    with pytest.raises(DataError, match="13 is beyond the last bucket, 12"):
        packed(tiny_processor, prompts, branches, lengths=(12,))


def test_a_branch_without_tokens_shifts_no_other(tiny_processor, prompts, branches):
    empty = [branches[0], [branches[1][0], np.zeros(0, np.int32), branches[1][2]]]
    batch = packed(tiny_processor, prompts, empty)
    without = packed(tiny_processor, prompts, [branches[0], [branches[1][0], branches[1][2]]])
    np.testing.assert_array_equal(batch.source[1], without.source[1])
    np.testing.assert_array_equal(batch.place[1, 2], without.place[1, 1])
