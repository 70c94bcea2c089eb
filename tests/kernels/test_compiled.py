"""Every kernel of the recipes compiled for an H100 and for TPUs, and what the compilers say about it.

Needs wheels that only the second pass of CI installs (docs/kernels.md).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

BENCH = Path(__file__).parents[2] / "bench"
WHEELS = ("jax_plugins.xla_cuda13", "libtpu", "jax_triton", "triton")
SHARED_MEMORY = 232_448
"""Bytes that one thread block may use on an H100."""
LIMITS = {"h100": 2**30, "v5p:2x2x1": 2**31, "v6e:2x2": 2**31}
"""Target -> bytes of temporaries of a layer; splash keeps its statistics 128 times."""


def installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11) or not all(map(installed, WHEELS)),
    reason="compilers for GPU and TPU are not installed",
)


CASES = {
    ("7b-causal-16k", ""): {"mosaic", "splash"}, ("8b-packed", ""): {"mosaic", "splash"},
    ("frames-72", ""): {"mosaic", "splash"}, ("7b-shared", ""): {"mosaic", "splash"},
    ("8b-branches", "splash"): {"splash"}, ("decode", "triton"): {"triton"},
    ("7b-decode-64k-bfloat16", "composed"): {"composed"}, ("layer-128k-gather", "mosaic"): {"mosaic"},
}  # fmt: skip
"""Cases of the benchmark, and the only backend compiled if one is named -> backends that serve them; the benchmark's
own `--aot` compiles many more."""


@pytest.mark.parametrize("only, expected", CASES.items(), ids=["-".join(filter(None, case)) for case in CASES])
def test_no_kernel_spills(only, expected, tmp_path):
    ours = ("TRITON_INTERPRET", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # what was compiled before says nothing again
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    name, backend = only
    command = [sys.executable, BENCH / "attention.py", "--aot", "--only", name, "--out", tmp_path]
    command += ["--backend", backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads((tmp_path / "attention_aot.json").read_text())["records"]
    ours = [record for record in records if record["backend"] in ("mosaic", "triton", "splash", backend)]
    assert {record["backend"] for record in ours} == expected
    for record in ours:
        assert "error" not in record, record
        assert record["kernels"] or record["backend"] in ("splash", "composed")
        for name, kernel in record["kernels"].items():
            assert kernel["spills"] == 0 and kernel["shared_memory"] <= SHARED_MEMORY, (name, kernel)
        assert record["temporaries"] < LIMITS[record["target"]], record
