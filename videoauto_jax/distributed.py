"""Several processes as one: start `jax.distributed` where the environment says so, know who writes, and agree.

What the host decides has to be the same in all processes of a job, since each runs the same programs on its devices.
So they exchange what only some of them know: the prompts that each has decoded, the rewards that each has graded, an
error, a signal. All call these functions together, from their main threads.
"""

import functools
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videoauto_jax.errors import UsageError, VideoAutoError

T = TypeVar("T")
PIECE_BYTES = 2**24
"""Bytes that each process sends at once: one device of each holds as many from every process for a moment."""


def initialize() -> None:
    """Joins the processes of a SLURM step, a GKE/JobSet or a TPU pod. Does nothing on a single host or a second time.

    Elsewhere JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are. Has to run
    before the first array is made.

    Raises:
        UsageError: the environment names several processes but they cannot be joined.
    """
    if jax.distributed.is_initialized() or not spans_processes(os.environ):
        return
    named = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    told = {key: int(os.environ[name]) for key, name in named.items() if name in os.environ}
    try:
        jax.distributed.initialize(**told, local_device_ids=gpus_of_node(os.environ))
    except (RuntimeError, ValueError) as error:
        fix = "Start every process of the job with the same command, before anything else uses jax"
        raise UsageError(f"the processes of this job could not be joined: {error}", fix=fix) from error


def refuse_processes(what: str, fix: str) -> None:
    """Ends what several processes of a job would each do in the same place.

    Raises:
        UsageError: this process is one of several.
    """
    if spans_processes(os.environ):
        raise UsageError(f"{what} cannot be shared by the processes of a job", where="environment", fix=fix)


def is_main() -> bool:
    """Whether this process writes the files that the job needs once: logs, reports, exports."""
    return jax.process_index() == 0


def spans_processes(environment: Mapping[str, str]) -> bool:
    """Whether environment variables say that this process is one of several of a job.

    A SLURM allocation alone is not enough: inside `salloc` only `srun` starts the processes that would answer.
    """
    slurm = "SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    tpu_hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    tpu_slices = "MEGASCALE_COORDINATOR_ADDRESS" in environment
    given = "JAX_COORDINATOR_ADDRESS" in environment
    jobset = "JOBSET_NAME" in environment and "KUBERNETES_SERVICE_HOST" in environment
    return slurm or given or jobset or tpu_slices or "," in tpu_hosts


def gpus_of_node(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of a SLURM task that is alone on its node: all. None leaves it to jax, which gives a task one of them.

    JAX_LOCAL_DEVICE_IDS (numbers with commas between them) says otherwise.
    """
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    count = int(environment.get("SLURM_GPUS_ON_NODE", 0)) or len([name for name in visible.split(",") if name])
    return list(range(count)) if alone and count and "JAX_LOCAL_DEVICE_IDS" not in environment else None


def exchange(value: T) -> list[T]:
    """What every process brings, in their order: anything that can be pickled."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
    sizes = _gather(np.array(divmod(len(data), PIECE_BYTES), np.int32))
    lengths = [int(pieces) * PIECE_BYTES + int(rest) for pieces, rest in sizes]
    width = min(PIECE_BYTES, 1 << (max(lengths) - 1).bit_length())  # few widths: each is a program
    found = [bytearray() for _ in lengths]
    for start in range(0, max(lengths), width):
        mine, piece = np.zeros(width, np.uint8), data[start : start + width]
        mine[: len(piece)] = piece
        for whole, length, part in zip(found, lengths, _gather(mine)):
            whole += part[: max(0, length - start)].data
    return [pickle.loads(whole) for whole in found]


def any_process(flag: bool) -> bool:
    """Whether it is true in one of the processes."""
    return flag if jax.process_count() == 1 else bool(_gather(np.bool_(flag)).any())


def together(act: Callable[[], T]) -> list[T]:
    """What `act` returns in every process. If it raises in one of them, all raise that."""
    if jax.process_count() == 1:
        return [act()]
    try:
        outcome = act(), None
    except Exception as error:
        outcome = None, _portable(error)
    outcomes = exchange(outcome)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [value for value, _ in outcomes]


def on_main(act: Callable[[], T]) -> T:
    """What `act` returns in the main process, the only one that runs it; all raise what it raises."""
    return together(lambda: act() if is_main() else None)[0]


def agree(value: object, what: str, fix: str) -> None:
    """Makes sure that all processes have the same.

    Raises:
        UsageError: they differ.
    """
    if any(other != value for other in exchange(value)):
        raise UsageError(f"{what} differ between the processes of this job", fix=fix)


def share(items: Sequence[T]) -> Sequence[T]:
    """The part of the work that is this process's: every n-th item."""
    return items[jax.process_index() :: jax.process_count()]


def join(shares: Sequence[Sequence[T]]) -> list[T]:
    """The items of which every process did its `share`, in their order."""
    joined: list = [None] * sum(map(len, shares))
    for process, done in enumerate(shares):
        joined[process :: len(shares)] = done
    return joined


def _gather(row: np.ndarray) -> np.ndarray:
    """The equally shaped rows of all processes, stacked: by way of one device of each."""
    replicate, mine = _gatherer()
    with jax.set_mesh(mine.mesh):  # whichever mesh is in use
        return np.asarray(replicate(jax.make_array_from_process_local_data(mine, row[None])))


@functools.cache
def _gatherer() -> tuple[Callable[[jax.Array], jax.Array], NamedSharding]:
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh([first[process] for process in sorted(first)], ("process",))
    replicate = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return replicate, NamedSharding(mesh, PartitionSpec("process"))


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return VideoAutoError(f"{type(error).__name__}: {error}")
