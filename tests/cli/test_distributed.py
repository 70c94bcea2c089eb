"""Which environments make one process of several, and that two of them join."""

import os
import socket
import subprocess
import sys

import pytest

from videoauto_jax.distributed import spans_processes

STEP = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # a shell inside an allocation
        (STEP | {"SLURM_STEP_NUM_TASKS": "4"}, True),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOBSET_NAME": "run"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_environments(environment, several):
    assert spans_processes(environment) is several


def test_two_processes_join():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = """
import jax
from videoauto_jax.distributed import initialize, is_main
initialize()
initialize()
print(jax.process_count(), jax.device_count(), is_main())
"""
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment | {"JAX_PROCESS_ID": n}
        )
        for n in "01"
    ]
    assert [process.communicate(timeout=90)[0].split() for process in processes] == [
        ["2", "4", "True"],
        ["2", "4", "False"],
    ]
