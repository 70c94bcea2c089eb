"""Which environments make one process of several, and that two of them join."""

import os
import socket
import subprocess
import sys

import pytest

from videoauto_jax.cli.main import main
from videoauto_jax.distributed import gpus_of_node, spans_processes

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


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": "4,5"}, [0, 1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_a_task_alone_on_its_node_drives_all_gpus(environment, gpus):
    assert gpus_of_node(environment) == gpus


@pytest.mark.parametrize("words", [["export", "run", "out"], ["import", "model", "out"], ["quickstart"]])
def test_what_a_job_cannot_share_is_refused(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "outside of the job" in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_two_processes_join_and_agree():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = """
import jax
from videoauto_jax import distributed
from videoauto_jax.cli.main import main
from videoauto_jax.distributed import agree, any_process, exchange, initialize, is_main, join, on_main, share, together

initialize()
initialize()
me, distributed.PIECE_BYTES = jax.process_index(), 64
print(jax.process_count(), jax.device_count(), is_main())
print(exchange("xy"[me] * (100 + 50 * me)) == ["x" * 100, "y" * 150], exchange(me) == [0, 1])
print(any_process(me == 1), any_process(False))
print(on_main(lambda: me), join(together(lambda: [2 * n for n in share(range(5))])))
agree("same", "recipes", "-")
for failing in (lambda: agree(me, "recipes", "Use one"), lambda: together(lambda: 1 / me)):
    try:
        failing()
    except Exception as error:
        print(type(error).__name__, error)
"""
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment | {"JAX_PROCESS_ID": n}
        )
        for n in "01"
    ]
    texts = [process.communicate(timeout=90)[0].splitlines() for process in processes]
    (joined, *agreed), others = ([line for line in text if not line.startswith("[Gloo]")] for text in texts)
    assert joined == "2 4 True"
    assert agreed == [
        "True True",
        "True False",
        "0 [0, 2, 4, 6, 8]",
        "UsageError recipes differ between the processes of this job. Use one",
        "ZeroDivisionError division by zero",
    ]
    assert others == ["2 4 False", *agreed]
