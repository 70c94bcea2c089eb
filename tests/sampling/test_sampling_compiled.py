"""The sampler's programs compiled for an H100 and a TPU: in place, and without a copy of any weight.

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
SCRIPT = """
import sys
sys.argv.append("--aot")
import dataclasses, json, sampling, sampling_ahead
from videoauto_jax.protocol.automaton import compile_automaton
config = sampling.full_size("qwen2.5-vl-7b-instruct")
config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=2))
automaton = compile_automaton(sampling.load_processor(sys.argv[1]).tokenizer, config.text.vocab_size)
work = sampling_ahead.Work("test", 16384, 1, 16, 2048, reach=512)
options = {"works": [work], "only": ["prefill, next", "decode"]}
targets = "h100", "v6e:2x2"
small = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=8))
split = sampling_ahead.Work("split", 131072, 1, 1, 1024, context=8)
alone = sampling_ahead.compile_all({"7b": small}, {"7b": automaton}, "h100", works=[split], only=options["only"])
found = {t: sampling_ahead.compile_all({"7b": config}, {"7b": automaton}, t, **options) for t in targets}
open(sys.argv[2], "w").write(json.dumps({"found": found, "split": alone}))
"""
LIMITS = {"prefill, next": (2**31, 2**31), "decode": (3584 * 18944 * 2, 2**29)}
"""Program -> bytes of temporaries on the GPU and the TPU. The GPU's for decoding are those of one of a layer's weights;
a TPU keeps the prompt once more, in the order in which it is read."""


def installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11) or not all(map(installed, WHEELS)),
    reason="compilers for GPU and TPU are not installed",
)
def test_caches_stay_in_place_and_weights_are_not_copied(tiny_folder, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    command = [sys.executable, "-c", SCRIPT, tiny_folder, tmp_path / "found.json"]
    done = subprocess.run(command, env=environment, cwd=BENCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for record in found["split"]:  # the prompt's keys and values are 2 GiB; two layers' of them are gathered at once
        assert record["temporaries"] < 2**30, record
    for target, records in found["found"].items():
        assert [record["program"] for record in records] == list(LIMITS)
        for record in records:
            assert "error" not in record and record["results"] < 2**20, record
            assert record["temporaries"] < LIMITS[record["program"]][target != "h100"], record
