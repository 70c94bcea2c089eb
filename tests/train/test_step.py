"""The compiled steps: they learn, and a mesh of eight devices learns the same as one device."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from videoauto_jax.models.hf import load_model
from videoauto_jax.models.partition import parameter_spec
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.sharding import MeshConfig, make_mesh, place_rows
from videoauto_jax.train import step as steps
from videoauto_jax.train.groups import pack_groups
from videoauto_jax.train.grpo import GRPOLossConfig, group_advantages
from videoauto_jax.train.metrics import reduction
from videoauto_jax.train.optimizer import OptimizerConfig, make_optimizer
from videoauto_jax.train.parameters import TrainableConfig, group
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.rollout import place_groups
from videoauto_jax.train.step import Learner, encode_vision

MESHES = [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "context": 2}]


@pytest.fixture(scope="module")
def rows(unpacked):
    """Four group rows on the host."""
    return pack_groups(*unpacked, bound=8)


@pytest.fixture(scope="module")
def unpacked(tiny_processor):
    """Four group rows of two branches, two of them with a video, on the host."""
    rng = np.random.default_rng(0)
    chats = []
    for n in range(4):
        frames = list(rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
        video = {"type": "video", "video": frames, "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
        chats.append([{"role": "user", "content": [video] * (n % 2) + [{"type": "text", "text": f"Question {n}"}]}])
    prompts = [tiny_processor.encode(chat) for chat in chats]
    branches = [[rng.integers(0, 384, 3 + n).astype(np.int32) for _ in range(2)] for n in range(4)]
    positions = [prompt.next_position for prompt in prompts]
    return tiny_processor.collate(prompts), positions, branches


class World:
    """A learner and the rows on one mesh."""

    def __init__(self, folder, rows, mesh):
        self.mesh = make_mesh(MeshConfig(**mesh), jax.devices()[: int(np.prod(list(mesh.values())))])
        model = load_model(folder, self.mesh, dtype="float32", param_dtype="float32")
        # eps: where a gradient is nothing but rounding, Adam's quotient would make a whole step of it.
        config = OptimizerConfig(learning_rate=2e-3, eps=1e-4)
        optimizer = make_optimizer(config, nnx.split(model, TrainableConfig(), ...)[1], 10)
        self.learner = Learner(model, TrainableConfig(), optimizer)
        self.rows, self.features = place_groups(rows, self.mesh), encode_vision(model, rows.inputs.vision)

    def log_probs(self, trainable):
        return self.learner.log_probs(trainable, self.learner.frozen, self.rows, self.features)

    def sft(self, count):
        """The state after some supervised steps, and their metrics."""
        weights = place_rows(np.asarray(self.rows.mask, np.float32), self.mesh)
        return self._run(count, self.learner.sft_step, self.rows, weights)

    def grpo(self, count):
        """The same of policy steps in which every first branch is the better one."""
        reference = old = self.log_probs(self.learner.initial)
        advantages = np.asarray(group_advantages(np.tile([2.0, 0.5], 4), 2)).reshape(4, 2)
        advantages, counted = place_rows((advantages, np.ones_like(advantages, bool)), self.mesh)
        shape = self.rows.mask.shape[:2]
        advantages, counted = advantages.reshape(shape), counted.reshape(shape)
        signals = steps.GroupSignals(advantages, counted, old, old, reference)
        return self._run(count, self.learner.grpo_step, self.rows, self.features, signals, GRPOLossConfig(beta=0.1))

    def _run(self, count, step, *arguments):
        state, history = self.learner.initial_state(), []
        for _ in range(count):
            with jax.set_mesh(self.mesh):
                state, metrics = step(state, self.learner.frozen, *arguments)
            history.append({name: float(total / count) for name, (total, count) in metrics.items()})
        return state, history


@pytest.fixture(scope="module")
def one(tiny_folder, rows):
    """One device."""
    return World(tiny_folder, rows, {"fsdp": 1})


@pytest.fixture(scope="module", params=MESHES, ids=str)
def eight(request, tiny_folder, rows):
    """Eight devices."""
    return World(tiny_folder, rows, request.param)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_eight_devices_take_the_steps_of_one(one, eight, kind):
    check_places(eight, eight.learner.initial_state())
    program = {"sft": steps._sft_step, "grpo": steps._grpo_step}[kind]
    before = program._cache_size()
    state, found = getattr(eight, kind)(2)
    assert program._cache_size() == before + 1  # the second step is the program of the first
    _, expected = getattr(one, kind)(2)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert abs(expected[0]["loss"] - expected[1]["loss"]) > 1e-3
    check_places(eight, state)


def check_places(world, state):
    """Parameters and both moments lie where the table says, and every matrix is split."""
    held = [state.trainable, *(optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))]
    for arrays in map(parameter_paths, held):
        for path, array in arrays.items():
            spec = parameter_spec(path, array.shape, world.mesh)
            wanted = jax.sharding.NamedSharding(world.mesh, spec)
            assert array.sharding.is_equivalent_to(wanted, array.ndim), path
            shard = array.addressable_shards[0].data.shape
            parts = np.prod([world.mesh.shape[axis] for axis in spec if axis])
            assert np.prod(shard) * parts == array.size
            if path.endswith(("kernel", "embedding")):
                assert parts == world.mesh.shape["fsdp"] * world.mesh.shape["tensor"], path


def test_supervised_loss_falls_and_only_what_trains_changes(one):
    whole = lambda trainable: parameter_paths(one.learner.model(trainable))  # noqa: E731
    before = {path: np.array(array) for path, array in whole(one.learner.initial).items()}
    state, history = one.sft(8)
    losses = [metrics["loss"] for metrics in history]
    assert losses[-1] < losses[0] - 1 and np.all(np.diff(losses) < 0)
    for path, array in whole(state.trainable).items():
        assert np.array_equal(array, before[path]) == (group(path) == "vision"), path
    for path, array in whole(one.learner.initial).items():  # whole, though the steps donated their state
        np.testing.assert_array_equal(array, before[path])


def test_weights_that_nobody_compares_with_are_not_kept(one, tiny_folder):
    model = load_model(tiny_folder, one.mesh, dtype="float32", param_dtype="float32")
    alone = copy.copy(one)
    alone.learner = Learner(model, TrainableConfig(), one.learner.optimizer, keep=False)
    begun = jax.tree.leaves(alone.learner.initial)
    state, history = alone.sft(2)
    assert all(leaf.is_deleted() for leaf in begun)  # the first step has taken them
    expected, expected_history = one.sft(2)
    assert history == expected_history
    for mine, theirs in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(expected.trainable)):
        np.testing.assert_array_equal(mine, theirs)
    facts = {"model": "", "output": "", "dtype": "float32"}
    kept = {}
    for beta in (0.0, 0.01):
        config = GRPOConfig(**facts, loss=GRPOLossConfig(beta=beta))
        kept[beta] = Learner.create(load_model(tiny_folder, dtype="float32"), config, 10).keep
    assert kept == {0.0: False, 0.01: True}


def test_rows_may_be_split_and_parts_come_one_after_the_other(one, unpacked):
    """Groups over two rows each, and updates in four parts, give the loss, the metrics and the weights of the whole."""
    rows = pack_groups(*unpacked, bound=8, subgroups=2)
    assert rows.mask.shape == (8, 1, 8)
    split, model = copy.copy(one), one.learner.model(one.learner.initial)
    split.rows = place_groups(rows, one.mesh)
    split.learner = Learner(model, TrainableConfig(), one.learner.optimizer, accumulate=4)
    (state, history), (expected, expected_history) = split.grpo(2), one.grpo(2)
    for found, metrics in zip(history, expected_history, strict=True):
        for name in (name for name in metrics if reduction(name) == "mean"):  # a part's maximum is not the whole's
            assert found[name] == pytest.approx(metrics[name], rel=1e-4, abs=2e-5), name
    weights = parameter_paths(state.trainable)
    for path, array in parameter_paths(expected.trainable).items():
        np.testing.assert_allclose(weights[path], array, atol=2e-5, err_msg=path)


def test_the_policy_moves_towards_the_better_branches(one):
    state, history = one.grpo(3)
    gain = np.asarray(one.log_probs(state.trainable) - one.log_probs(one.learner.initial)).sum(-1)
    assert (gain[:, 0] > gain[:, 1]).all()
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6) and history[-1]["kl"] > 0


def test_weights_decide_which_tokens_are_learned(one):
    log_probs = np.asarray(one.log_probs(one.learner.initial))
    weights = np.zeros_like(log_probs)
    weights[1, 0, 2] = weights[3, 1, 4] = 1
    arguments = one.learner.frozen, one.rows, place_rows(weights, one.mesh)
    with jax.set_mesh(one.mesh):
        _, metrics = one.learner.sft_step(one.learner.initial_state(), *arguments)
    assert float(metrics["loss"][0]) == pytest.approx(-log_probs[1, 0, 2] - log_probs[3, 1, 4], abs=1e-5)
    assert float(metrics["loss"][1]) == 2


def test_rows_lie_on_the_batch_axes():
    mesh = make_mesh(MeshConfig(**MESHES[1]))
    placed = place_rows({"rows": np.zeros((8, 3)), "some": np.zeros((6, 3)), "odd": np.zeros((5, 3))}, mesh)
    assert placed["rows"].sharding.spec == P(("data", "fsdp"), None) and isinstance(placed["rows"], jnp.ndarray)
    assert placed["some"].sharding.shard_shape((6, 3)) == (3, 3) and placed["odd"].sharding.is_fully_replicated
