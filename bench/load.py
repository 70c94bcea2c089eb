"""How fast a 4 GB folder loads, against reading its files, and how much memory that takes beside the model itself.

    python bench/load.py [--folder FOLDER] [--result bench/results/load.json]

The folder is written once (a Qwen3-VL of 2B parameters, random bfloat16 weights, five files) and kept with --folder.
Loading and reading into memory take turns, each in a process of its own; what is stated is the median of the turns.
`peak_bytes` is the largest resident set of a process; on a CPU that holds the model too, so its bytes are taken off.
More than 1.5 times the largest tensor and 1 GiB is an error: status 1, and no result is written.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = Path(__file__).parents[1] / "configs" / "models" / "qwen3-vl-2b-instruct.json"
TURNS = 5

READ = """
import sys, time
from pathlib import Path
import numpy as np
start = time.perf_counter()
kept = [np.fromfile(file, np.uint8) for file in sorted(Path(sys.argv[1]).glob("*.safetensors"))]
print(time.perf_counter() - start)
"""
LOAD = """
import sys, time, resource
import jax
from videoauto_jax.models.hf import load_model
jax.block_until_ready(jax.numpy.zeros(3))
start = time.perf_counter()
model = load_model(sys.argv[1])
jax.block_until_ready(jax.tree.leaves(model))
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, sum(x.nbytes for x in jax.tree.leaves(model)))
"""


def write_folder(folder: Path) -> None:
    """A folder of the real sizes with random weights, one layer's tensors at a time."""
    import ml_dtypes
    import numpy as np

    from videoauto_jax.models.config import read_config
    from videoauto_jax.models.hf import abstract_model, plan_files, write_files
    from videoauto_jax.models.qwen_vl import parameter_paths
    from videoauto_jax.models.weights import rows

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(SIZES.read_text())
    config = read_config(folder)
    shapes, rng, written = parameter_paths(abstract_model(config, "bfloat16", "bfloat16")), np.random.default_rng(0), []
    for row in rows(config):
        shape = row.hf_shape(shapes[row.path].shape)
        make = lambda shape=shape: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)  # noqa: E731
        written += [(key, shape, np.dtype(ml_dtypes.bfloat16), make) for key in row.keys]
    write_files(written, folder, plan_files(written, {}, "1GB"))


def run(code: str, folder: Path) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def measure(folder: Path) -> dict:
    from videoauto_jax.models.tensor_files import stored_tensors

    tensors = stored_tensors(folder)
    largest = max(tensor.dtype.itemsize * _size(tensor.shape) for tensor in tensors.values())
    run(READ, folder)  # into the page cache
    turns = [(run(READ, folder), run(LOAD, folder)) for _ in range(TURNS)]
    read, load = (statistics.median(turn[side][0] for turn in turns) for side in (0, 1))
    peak, model = max(turn[1][1] for turn in turns), turns[0][1][2]
    return {
        "files_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "files": len(list(folder.glob("*.safetensors"))),
        "read_seconds": read,
        "load_seconds": load,
        "load_over_read": load / read,
        "load_over_read_of_each_turn": [turn[1][0] / turn[0][0] for turn in turns],
        "peak_bytes": peak,
        "model_bytes": model,
        "beside_the_model_bytes": peak - model,
        "largest_tensor_bytes": largest,
        "allowed_bytes": 1.5 * largest + 2**30,
    }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the generated folder here, or take one that is there")
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "load.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "config.json").exists():
            write_folder(folder)
        result = {"date": time.strftime("%Y-%m-%d"), "command": "python bench/load.py", **measure(folder)}
    print(json.dumps(result, indent=1))
    beside, allowed = result["beside_the_model_bytes"], result["allowed_bytes"]
    if beside > allowed:
        sys.exit(
            f"error: loading took {beside / 2**30:.2f} GiB beside the model, {allowed / 2**30:.2f} GiB are allowed"
        )
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
