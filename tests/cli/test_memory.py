"""Import and export never hold more of a model than they say, however large it is."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from videoauto_jax.models.config import read_config
from videoauto_jax.models.hf import abstract_model, plan_files, write_files
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.models.tensor_files import stored_tensors
from videoauto_jax.models.weights import rows

LAYERS, SLACK = 8, 5 * 2**25
# The same verb on a small model first: what modules, threads and compilers take is not what is measured.
CODE = """
import resource, sys
from videoauto_jax.cli.main import main
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
verb, options = sys.argv[1], sys.argv[6:]
assert main([verb, *sys.argv[2:4], *options]) == 0
before = peak()
assert main([verb, *sys.argv[4:6], *options]) == 0
print(peak() - before)
"""


def taken(verb, small, large, *options):
    """Bytes that a verb takes for the large folder beyond those that it took for the small one."""
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CODE, verb, *map(str, (*small, *large)), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **flags}, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def folders(write_tiny, tmp_path_factory):
    """A folder of one layer and a large one in several files, of noise, which does not get smaller in a checkpoint."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 128, "num_key_value_heads": 128}
    vision, root = {"out_hidden_size": 512}, tmp_path_factory.mktemp("memory")
    small = write_tiny("qwen3_vl", tied=True, text=sizes | {"num_hidden_layers": 1}, vision=vision)
    large = write_tiny("qwen3_vl", tied=True, text=sizes | {"num_hidden_layers": 1}, vision=vision)
    text = (large / "config.json").read_text()
    (large / "config.json").write_text(text.replace('"num_hidden_layers": 1', f'"num_hidden_layers": {LAYERS}'))
    config, rng, written = read_config(large), np.random.default_rng(0), []
    shapes = parameter_paths(abstract_model(config, "float32", "float32"))
    for row in rows(config):
        shape = row.hf_shape(shapes[row.path].shape)
        written += [(key, shape, np.dtype("float32"), lambda s=shape: rng.random(s, np.float32)) for key in row.keys]
    write_files(written, large, plan_files(written, {}, "50MB"))
    yield small, large, root
    for folder in (large, root):
        shutil.rmtree(folder)  # most of what the whole suite writes


def test_peak_memory(folders):
    small, large, root = folders
    tensors = stored_tensors(large)
    largest = max(np.prod(tensor.shape) for tensor in tensors.values()) * 4
    model = sum(np.prod(tensor.shape) for tensor in tensors.values()) * 4
    assert model > 7 * LAYERS * largest and len({tensor.file for tensor in tensors.values()}) > 3

    imported, exported = [root / "small", root / "large"], [root / "small_hf", root / "large_hf"]
    beside = taken("import", (small, imported[0]), (large, imported[1])) - model
    assert beside < 1.5 * LAYERS * largest + SLACK < model  # LAYERS: a checkpoint is written parameter by parameter
    peak = taken("export", (imported[0], exported[0]), (imported[1], exported[1]), "dtype=base")
    assert peak < 8 * largest + 2**26 < model / 2
    for file in large.glob("*.safetensors"):
        ours = load_file(exported[1] / file.name)
        for key, tensor in load_file(file).items():
            assert ours[key].tobytes() == tensor.tobytes(), key
