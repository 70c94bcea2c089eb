"""Training checkpoints: sharded arrays and a JSON state per step, written in the background, restored bit for bit.

Arrays are stored flat under the path of each leaf (`params/layers/kernel`), so a checkpoint depends neither on the
containers around its arrays (optax tuples, `nnx.State`, dicts) nor on the mesh that wrote it.
"""

import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from videoauto_jax.distributed import is_main
from videoauto_jax.errors import CheckpointError
from videoauto_jax.models.lazy import LazyParameter

PyTree = Any
_POLICIES = ocp.training.preservation_policies
WHOLE_BYTES = 2**24
"""Up to this size an array of layers lies on disk in one piece for every device."""
_ARRAYS, _STATE = "arrays", "json"  # what each step's folder holds


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, the newest `keep` of them and, optionally, the best.

    Only one save is in flight; the next `save`, `wait` or `close` reports what became of it. All processes of a job
    call the methods together.

    Args:
        folder: made when missing. What interrupted saves left behind is removed.
        keep: how many of the newest steps stay on disk.
        best: the name of a number in the state: of the steps whose state has it, the one with the highest is kept too.
        read_only: for another's checkpoints, perhaps of a run still going on: makes no folder and removes nothing.
        beside: bytes that a save may take beside the arrays, no fewer than the largest array has; None: any number.

    Raises:
        CheckpointError: the folder cannot be made or, with `read_only`, is not there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 3,
        best: str | None = None,
        read_only: bool = False,
        beside: int | None = None,
    ):
        self.folder = Path(folder).absolute()
        self._best = best
        self._orbax = None
        if not read_only:
            self._sweep()
        elif not self.folder.is_dir():
            raise CheckpointError("there is no such folder", where=self.folder, fix="Check the path")
        policies = [_POLICIES.LatestN(keep)]
        if best is not None:
            policies.append(_POLICIES.BestN(get_metric_fn=_best_of, n=1, keep_checkpoints_without_metrics=False))
        self._orbax = self._write(
            "open the checkpoints",
            lambda: ocp.training.Checkpointer(
                self.folder,
                context=_context(beside),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=_POLICIES.AnyPreservationPolicy(policies),
            ),
        )

    def save(self, step: int, arrays: PyTree, state: dict, *, wait: bool = False) -> None:
        """Writes a step; returns when the arrays may be changed or donated, or with `wait` when they are on disk.

        Args:
            step: replaces a step of the same number.
            arrays: a pytree of jax arrays (typed PRNG keys too) and NumPy arrays.
            state: anything JSON can hold: counters, the position in the data, metrics.

        Raises:
            CheckpointError: this save, or the one before it, could not be written. Earlier steps are intact.
        """
        content = {_ARRAYS: _checked(_flatten(arrays)), _STATE: _json(state)}
        self.wait()
        options = {"force": True, "overwrite": step in self.steps(), "metrics": self._metrics(state)}
        started = self._write(
            f"save step {step}",
            lambda: self._orbax.save_checkpointables_async(step, content, **options),
        )
        if started is None:
            raise CheckpointError(f"step {step} was not saved", where=self.folder, fix="Save a later step number")
        if wait:
            self.wait()

    def wait(self) -> None:
        """Blocks until the save in flight is on disk. Raises CheckpointError if it could not be written."""
        self._write("save the last checkpoint", self._orbax.wait)

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints] if self._orbax else []

    def latest(self) -> int | None:
        """The newest step, or None before the first save."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step whose `best` number is highest (the later of equals), or None."""
        scored = [(_best_of(item.metrics), item.step) for item in self._orbax.checkpoints if item.metrics]
        return max(scored)[1] if scored else None

    def restore(self, step: int | None = None, *, like: PyTree, partial: bool = False) -> tuple[PyTree, dict]:
        """Reads a step back, each array straight into the sharding that `like` gives it.

        Args:
            step: the newest when None.
            like: the tree that was saved: `jax.ShapeDtypeStruct`s (with `sharding`, else the first device) or arrays;
                a NumPy array restores as NumPy.
            partial: `like` may be a part of what was saved, such as the parameters without the optimizer.

        Returns:
            (arrays in the structure of `like`, state).

        Raises:
            CheckpointError: no such step, or the checkpoint is of another architecture: names the parameter.
        """
        self.wait()
        step = self._existing(step)
        wanted, stored = _flatten(like), self._stored(step)
        _check_same(wanted, stored, self.folder / str(step), partial)
        targets = {name: _target(wanted[name]) if name in wanted else ocp.PLACEHOLDER for name in stored}
        found = self._read(step, lambda: self._orbax.load_checkpointables(step, {_ARRAYS: targets, _STATE: None}))
        leaves = [found[_ARRAYS][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found[_STATE]

    def lazy(self, step: int | None = None, *, like: PyTree) -> PyTree:
        """The arrays of a step in the structure of `like`, each to be read when asked for, one layer at a time.

        Args:
            step: the newest when None.
            like: a part of the tree that was saved: shapes and dtypes.

        Raises:
            CheckpointError: as `restore`; of a damaged step, when the array is read.
        """
        self.wait()
        step, wanted = self._existing(step), _flatten(like)
        _check_same(wanted, self._stored(step), self.folder / str(step), partial=True)
        leaves = [
            LazyParameter(*_stored_form(leaf), functools.partial(self._layer, step, name))
            for name, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _layer(self, step: int, name: str, layer: int | None) -> np.ndarray:
        base = {"driver": "file", "path": f"{self.folder / str(step) / _ARRAYS}/"}
        where = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        stored = self._read(step, lambda: tensorstore.open(where, read=True).result())
        return self._read(step, lambda: np.asarray((stored if layer is None else stored[layer]).read().result()))

    def close(self) -> None:
        """Waits for the save in flight and ends the background threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _stored(self, step: int) -> dict[str, Any]:
        """Shape and dtype of every array of a step."""
        return self._read(step, lambda: dict(self._orbax.checkpointables_metadata(step).metadata[_ARRAYS]))

    def _metrics(self, state: dict) -> dict | None:
        return {"best": float(state[self._best])} if self._best in state else None

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            fix = "Train first, or name another folder"
            raise CheckpointError("there is no checkpoint", where=self.folder, fix=fix)
        if step is not None and step not in steps:
            raise CheckpointError(f"there is no step {step}", where=self.folder, fix=f"Choose one of {steps}")
        return steps[-1] if step is None else step

    def _read(self, step: int, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # whatever orbax makes of a file that is cut, missing or not its own
            others = [other for other in self.steps() if other != step]
            fix = f"Choose another step: {others}" if others else "Begin in a new folder"
            raise CheckpointError(f"step {step} is damaged: {_reason(error)}", where=self.folder, fix=fix) from error

    def _write(self, what: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # orbax raises what its storage raised: ValueError, OSError, its own
            self._sweep()
            if self._orbax is not None:
                self._orbax.reload()  # it has already forgotten the steps that the failed one would have replaced
            what = f"could not {what}: {_reason(error)}"
            raise CheckpointError(what, where=self.folder, fix=_remedy(error, self.steps())) from error

    def _sweep(self) -> None:
        if is_main():
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)


def _context(beside: int | None) -> ocp.Context:
    registry = ocp.handlers.local_registry().add(ocp.handlers.JsonHandler, checkpointable_name=_STATE)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.array.saving.scoped_storage_options_creator = _chunks
    if beside is not None:
        limit = beside + 1  # orbax asks for one to spare
        context.memory.write_concurrent_bytes = context.memory.transfer_concurrent_bytes = limit
    return context


def _chunks(path: tuple, leaf: Any) -> Any:
    """Large stacks of layers are cut into layers on disk, so that one can be read without the others."""
    del path
    storage = ocp.options.ArrayOptions.Saving.StorageOptions
    return storage(shard_axes=(0,)) if leaf.ndim > 2 and leaf.nbytes > WHOLE_BYTES else None


def _best_of(metrics: dict) -> float:
    return metrics["best"]


def _flatten(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(flat) < len(leaves):
        raise CheckpointError("two arrays of the tree have the same path", fix='Use no "/" in names')
    return flat


def _json(state: dict) -> dict:
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        fix = "Keep numbers, text, lists and dicts in it, and arrays among the arrays"
        raise CheckpointError(f"the state is not JSON: {error}", fix=fix) from error


def _checked(leaves: dict[str, Any]) -> dict[str, Any]:
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            fix = "Numbers and text belong into the state"
            raise CheckpointError(f"{name} is not an array but {type(leaf).__name__}", fix=fix)
    return leaves


def _target(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _stored_form(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype on disk: a typed PRNG key lies there as its words."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def _check_same(wanted: dict, stored: dict, place: Path, partial: bool) -> None:
    fix = "Restore it with the recipe that wrote it, or begin in a new folder"
    for name, leaf in wanted.items():
        if name not in stored:
            raise CheckpointError(f"the checkpoint has no {name}, which this model needs", where=place, fix=fix)
        expected, found = _stored_form(leaf), (tuple(stored[name].shape), np.dtype(stored[name].dtype))
        if expected != found:
            what = f"{name} is {_form(*found)} in the checkpoint, expected {_form(*expected)}"
            raise CheckpointError(what, where=place, fix=fix)
    extra = sorted(set(stored) - set(wanted))
    if extra and not partial:
        raise CheckpointError(f"the checkpoint has {extra[0]}, which this model lacks", where=place, fix=fix)


def _form(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _reason(error: Exception) -> str:
    if _is_full(error):
        return "the disk is full"
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _remedy(error: Exception, steps: list[int]) -> str:
    kept = f"Steps {steps} are intact. " if steps else ""
    return kept + ("Free some space and run the same command again" if _is_full(error) else "--debug shows more")


def _is_full(error: Exception) -> bool:
    """The storage library reports the operating system's error as text, whichever exception carries it."""
    return any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded"))


class _QuietOrbax(logging.Filter):
    """Orbax logs the traceback of a failed save from each of its threads; the error itself reaches the caller."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname


logging.getLogger("absl").addFilter(_QuietOrbax())
