"""Compiles functions for hardware that is not here, and reads what the compilers say about each kernel.

Needs, beside the CPU's jax and of the same version, jax-cuda13-plugin, jax-cuda13-pjrt, nvidia-cuda-nvcc 13.0 and
nvidia-nvvm for GPUs, libtpu for TPUs (docs/kernels.md). No driver and no device. Import this before jax.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["MOSAIC_GPU_DUMP_TO"] = tempfile.mkdtemp(prefix="mosaic_")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Split = PartitionSpec | Callable[[jax.ShapeDtypeStruct], PartitionSpec]
DUMP = Path(os.environ["MOSAIC_GPU_DUMP_TO"])
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def mesh(target: str, axes: dict[str, int]) -> Mesh:
    """A mesh of devices that are not here.

    Args:
        target: `h100`, or a TPU topology such as `v5p:2x2x1`.
        axes: names and sizes.
    """
    count = int(np.prod(list(axes.values())))
    if target == "h100":
        found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name=target)
    return Mesh(np.array(found.devices[:count]).reshape(*axes.values()), tuple(axes))


def compile_for(place: Mesh, function, *arguments, specs: Sequence[Split] | None = None, **static) -> dict:
    """Compiles `function` for a mesh and reports.

    Args:
        place: from `mesh`.
        function: what to compile, jitted already if it donates or has static arguments; traced as if it ran on the
            mesh's devices.
        arguments: pytrees of shapes and dtypes.
        specs: how each is split, or what says so of every array; whole on every device if left out.
        static: static arguments.

    Returns:
        `memory`: bytes per device of arguments, of results that are not donated arguments, and of temporaries;
        `temporaries` once more; and `kernels`: name -> registers, spills and shared memory in bytes.
    """
    specs = specs or (PartitionSpec(),) * len(arguments)

    def put(x: jax.ShapeDtypeStruct, spec: Split) -> jax.ShapeDtypeStruct:
        spec = spec(x) if callable(spec) else spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(place, spec))

    placed = [jax.tree.map(lambda x, spec=spec: put(x, spec), argument) for argument, spec in zip(arguments, specs)]
    for old in DUMP.glob("*.*"):
        old.unlink()
    with jax.sharding.use_abstract_mesh(place.abstract_mesh), _quiet():
        program = function if hasattr(function, "lower") else jax.jit(function)
        found = program.lower(*placed, **static).compile().memory_analysis()
    memory = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
    }
    return {"memory": memory, "temporaries": memory["temporaries"], "kernels": _mosaic_kernels()}


def _mosaic_kernels() -> dict[str, dict[str, int]]:
    """From the reports of ptxas, which ends with the two lines looked for, and of Mosaic."""
    kernels = {}
    for report in sorted(DUMP.glob("*.ptxas")):
        text, resources = report.read_text(), report.with_suffix(".resources.txt").read_text()
        number = lambda pattern, where: max(map(int, re.findall(pattern, where)), default=0)  # noqa: E731
        kernels[report.stem] = {
            "registers": number(r"Used (\d+) registers", text),
            "spills": number(r"(\d+) bytes spill", text),
            "shared_memory": number(r"smem_scratch_bytes=(\d+)", resources),
        }
    return kernels


def triton_kernel(kernel, types: list[str], constants: dict, **options) -> dict[str, int]:
    """Compiles a Triton kernel for an H100 with no jax in between: registers, spills, shared memory.

    Args:
        kernel: the jitted function.
        types: Triton's names of its array arguments' types, such as `*bf16`.
        constants: its other arguments.
        options: warps and stages.
    """
    import subprocess

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    triton.knobs.cache.dir = str(DUMP / "triton")  # jax-triton leaves it empty
    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * (len(names) - len(types))]))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    binary = DUMP / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "shared_memory": compiled.metadata.shared,
    }


@contextlib.contextmanager
def _quiet():
    """Mosaic's dumper complains once per kernel about a disassembler that is not installed, on the process's stderr."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
