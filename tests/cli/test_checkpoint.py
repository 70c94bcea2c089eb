"""Checkpoints: what comes back is bit for bit what went in, on any mesh, whatever went wrong in between."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from videoauto_jax import checkpoint
from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.errors import CheckpointError


def _sharding(shape, axes, spec):
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    return NamedSharding(mesh, spec)


def _tree(sharding=None, seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((2, 16, 8)).astype(np.float32)
    kernel[0, 0, :4] = [np.nan, -0.0, np.inf, 1e-45]
    params = {
        "layers": [{"kernel": jax.device_put(kernel, sharding)}],
        "norm": jnp.asarray(rng.standard_normal(16).astype(ml_dtypes.bfloat16)),
    }
    return {"params": params, "optimizer": optax.adamw(1e-3).init(params), "key": jax.random.key(seed)}


def _bits(tree):
    def bits(leaf):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return np.asarray(leaf).tobytes(), leaf.shape, str(leaf.dtype)

    return jax.tree.map(bits, tree)


def _shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def test_restores_bit_for_bit_with_state(tmp_path):
    tree, state = _tree(), {"step": 3, "data": {"epoch": 1, "seen": [1, 2]}, "rate": 0.1, "note": None}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(3, tree, state, wait=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        restored, found = checkpoints.restore(like=_shapes(tree))
    assert found == state
    assert _bits(restored) == _bits(tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_restores_on_another_mesh_and_in_part(tmp_path):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    tree = _tree(_sharding((4, 2), ("fsdp", "tensor"), P(None, "fsdp", "tensor")))
    other = _sharding((2, 4), ("data", "tensor"), P("data", "tensor"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        like = {"params": _shapes(tree["params"])}
        like["params"]["layers"][0]["kernel"] = jax.ShapeDtypeStruct((2, 16, 8), jnp.float32, sharding=other)
        like["key"] = jax.ShapeDtypeStruct((), tree["key"].dtype, sharding=NamedSharding(other.mesh, P()))
        restored, _ = checkpoints.restore(like=like, partial=True)
    assert restored["params"]["layers"][0]["kernel"].sharding == other
    assert _bits(restored["key"]) == _bits(tree["key"])
    assert _bits(restored["params"]) == _bits(tree["params"])


def test_arrays_can_be_read_later_and_layer_by_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WHOLE_BYTES", 512)
    tree = _tree(_sharding((4, 2), ("fsdp", "tensor"), P(None, "fsdp", "tensor")))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, tree, {}, wait=True)
        chunk = checkpoints._stored(7)["params/layers/0/kernel"].storage_metadata.chunk_shape
        assert chunk == (1, 16 // 4, 8 // 2)
        found = checkpoints.lazy(like={"params": _shapes(tree["params"])})["params"]
        kernel, norm = found["layers"][0]["kernel"], found["norm"]
        assert (kernel.shape, kernel.dtype, norm.dtype) == ((2, 16, 8), np.float32, ml_dtypes.bfloat16)
        for layer, expected in enumerate(np.asarray(tree["params"]["layers"][0]["kernel"])):
            assert kernel.read(layer).tobytes() == expected.tobytes()
        assert norm.read(None).tobytes() == np.asarray(tree["params"]["norm"]).tobytes()
        with pytest.raises(CheckpointError, match="no params/bias"):
            checkpoints.lazy(like={"params": {"bias": jnp.zeros(16)}})
        for file in (tmp_path / "7" / "arrays" / "d").iterdir():
            file.write_bytes(b"not what it was")
        with pytest.raises(CheckpointError, match="step 7 is damaged"):
            kernel.read(0)


def test_numpy_leaves_come_back_as_numpy(tmp_path):
    tree = {"order": np.arange(5, dtype=np.int64), "count": np.asarray(2**40)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        restored, _ = checkpoints.restore(like=tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert _bits(restored) == _bits(tree)


def test_no_save_is_skipped_and_donated_arrays_are_safe(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros((256, 1024))
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for number in range(6):
            checkpoints.save(number, {"x": array}, {"n": number})
            for _ in range(10):
                array = step(array)
        checkpoints.wait()
        assert checkpoints.steps() == [0, 1, 2, 3, 4, 5]
        for number in range(6):
            restored, state = checkpoints.restore(number, like={"x": array})
            assert state == {"n": number}
            np.testing.assert_array_equal(restored["x"], 10.0 * number)


def test_keeps_the_newest_and_the_best(tmp_path):
    scores = [0.1, 0.9, 0.3, 0.2, 0.5]
    with Checkpoints(tmp_path, keep=2, best="accuracy") as checkpoints:
        for number, score in enumerate(scores):
            checkpoints.save(number, {"x": jnp.ones(2)}, {"accuracy": score})
    with Checkpoints(tmp_path, keep=2, best="accuracy") as checkpoints:
        assert checkpoints.steps() == [1, 3, 4]
        assert (checkpoints.latest(), checkpoints.best()) == (4, 1)


def test_saving_a_step_again_replaces_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)}, {"try": 1})
        checkpoints.save(1, {"x": jnp.ones(2)}, {"try": 2})
        restored, state = checkpoints.restore(like={"x": jnp.zeros(2)})
    assert state == {"try": 2} and restored["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda like: like["params"].update(norm=jnp.zeros(12, jnp.bfloat16)), ["params/norm", "[16]", "[12]"]),
        (lambda like: like["params"].update(norm=jnp.zeros(16)), ["params/norm", "bfloat16", "float32"]),
        (lambda like: like["params"].update(bias=jnp.zeros(16)), ["params/bias", "no "]),
        (lambda like: like["params"].pop("norm"), ["params/norm", "lacks"]),
    ],
)
def test_another_architecture_is_named(tmp_path, change, words):
    tree = _tree()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        like = dict(tree, params=dict(tree["params"]))
        change(like)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(like=like)
    assert all(word in str(caught.value) for word in [*words, str(tmp_path / "0"), "recipe"])


def test_missing_steps_are_named(tmp_path):
    like = {"x": jnp.zeros(2)}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoints.restore(like=like)
        checkpoints.save(4, like, {}, wait=True)
        with pytest.raises(CheckpointError, match=r"no step 3 .*\[4\]"):
            checkpoints.restore(3, like=like)


@pytest.mark.parametrize("victim", ["arrays/manifest.ocdbt", "arrays/_METADATA", "json/data.json", "arrays/d/*"])
def test_a_damaged_step_is_named(tmp_path, victim):
    tree = {"x": jnp.arange(4096.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        checkpoints.save(2, tree, {}, wait=True)
        for file in (tmp_path / "2").glob(victim):
            file.write_bytes(b"not what it was")
        with pytest.raises(CheckpointError, match=r"step 2 is damaged: .*another step: \[1\]"):
            checkpoints.restore(like=tree)
        restored, _ = checkpoints.restore(1, like=tree)
    assert _bits(restored) == _bits(tree)


def test_a_reader_makes_and_removes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoints(tmp_path / "typo", read_only=True)
    with Checkpoints(tmp_path) as writer:
        writer.save(1, {"x": jnp.ones(2)}, {}, wait=True)
        (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
        with Checkpoints(tmp_path, read_only=True) as reader:
            assert reader.restore(like={"x": jnp.ones(2)})[0]["x"].tolist() == [1, 1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]


def test_what_is_not_an_array_or_not_json_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="a/lr is not an array but float"):
            checkpoints.save(0, {"a": {"lr": 0.1}}, {})
        with pytest.raises(CheckpointError, match="state is not JSON"):
            checkpoints.save(0, {"x": jnp.ones(2)}, {"x": jnp.ones(2)})


def test_leftovers_of_a_killed_save_are_swept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    (tmp_path / "2.orbax-checkpoint-tmp" / "arrays").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


_FAILING_WRITE = """
import resource, signal, sys
import jax, numpy as np
from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.errors import CheckpointError
small, large = {"x": np.arange(8.0)}, {"x": np.random.default_rng(0).random((1024, 512))}
checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(1, small, {"n": 1}, wait=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for step in (2, 3):
    try:
        checkpoints.save(step, large, {"n": step}, wait=True)
    except CheckpointError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert checkpoints.latest() == 1, checkpoints.steps()
restored, state = checkpoints.restore(like=small)
assert state == {"n": 1} and (restored["x"] == small["x"]).all()
checkpoints.save(4, small, {"n": 4})
checkpoints.close()
assert checkpoints.steps() == [4]
"""


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path):
    command = [sys.executable, "-c", _FAILING_WRITE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2 and all("could not save" in line and "Steps [1] are intact" in line for line in lines)
    assert "Traceback" not in run.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["4"]


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    message = "RESOURCE_EXHAUSTED: Failed writing: \"d/14f0\": No space left on device [os_error_code='28']"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {}, wait=True)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._orbax, "wait", lambda: (_ for _ in ()).throw(ValueError(message)))
            with pytest.raises(CheckpointError, match=r"the disk is full .*Steps \[1\] are intact. Free some space"):
                checkpoints.wait()
