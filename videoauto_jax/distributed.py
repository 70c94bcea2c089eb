"""Several hosts as one: start `jax.distributed` where the environment says so, and know who writes."""

import os
from collections.abc import Mapping

import jax

from videoauto_jax.errors import UsageError


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
    try:
        jax.distributed.initialize(**{key: int(os.environ[name]) for key, name in named.items() if name in os.environ})
    except (RuntimeError, ValueError) as error:
        fix = "Start every process of the job with the same command, before anything else uses jax"
        raise UsageError(f"the processes of this job could not be joined: {error}", fix=fix) from error


def refuse_processes(what: str) -> None:
    """Ends a verb that works in one process only, before several of them write to the same place.

    Raises:
        UsageError: this process is one of several of a job.
    """
    if spans_processes(os.environ):
        fix = "Start one process that drives all devices of its machine, for example with srun --ntasks=1"
        raise UsageError(f"{what} in several processes is not ready yet", where="environment", fix=fix)


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
