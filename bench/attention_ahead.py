"""Compiles what `attention.py` measures for devices that are not here, and whole layers split over eight of them."""

import time
from functools import partial

import ahead
import jax
import jax.numpy as jnp
from attention_cases import Case
from jax.sharding import PartitionSpec as P

from videoauto_jax.kernels import backends, context_parallel
from videoauto_jax.kernels.quantized import Quantized

TARGETS = {
    "h100": ("mosaic", "cudnn", "triton", "composed"),
    "v5p:2x2x1": ("splash",),
    "v6e:2x2": ("splash",),
}
"""Where to compile -> backends that are compiled there."""
LAYER = 131072


def compile_all(chosen: list[Case], only: str) -> dict:
    """One record per case, backend and target: what the compiler reports, or why the backend refuses."""
    records = []
    for case, backend, target in wanted(chosen):
        records.append({"case": case.name, "backend": backend, "target": target} | attempt(case, backend, target))
        print(*records[-1].values(), flush=True)
    for strategy in context_parallel.STRATEGIES:
        if only in (name := f"layer-128k-{strategy}"):
            records.append({"case": name, "backend": "mosaic", "target": "h100"} | attempt_layer(strategy))
            print(*records[-1].values(), flush=True)
    return {"jax": jax.__version__, "records": records}


def wanted(chosen: list[Case]):
    """Lengths change no kernel: one case of each is compiled."""
    done = set()
    for target, names in TARGETS.items():
        for case in chosen:
            for backend in names:
                key = target, backend, case.kernel
                if backend in backends.MODULES[case.operation] and key not in done:
                    done.add(key)
                    yield case, backend, target


def attempt(case: Case, backend: str, target: str) -> dict:
    """Compiles one case, gradients included."""
    start = time.monotonic()
    try:
        mesh = ahead.mesh(target, {"data": 1})
        function = case.gradient(backend) if case.backward else case.function(backend)
        report = ahead.compile_for(mesh, function, *case.shapes())
    except Exception as error:  # recorded; the test decides which may fail
        return {"error": f"{type(error).__name__}: {error}"[:400]}
    if backend == "triton":
        report["kernels"] = triton_kernels(case)
    return report | {"seconds": round(time.monotonic() - start, 1)}


def triton_kernels(case: Case) -> dict[str, dict[str, int]]:
    """jax-triton has its kernels assembled when they first run; here they are now."""
    from videoauto_jax.kernels import triton_decode

    q, cache, _, own, _ = case.shapes()
    plan, scale = triton_decode.plan(q, cache, own), "*fp32" if isinstance(cache, Quantized) else "*i32"
    kind = {"bfloat16": "*bf16", "float8_e4m3fn": "*fp8e4nv", "int8": "*i8"}[case.cache]
    types = ["*bf16", *[kind, kind, scale, scale] * 2, "*i32", "*i32", "*i32", "*i32", "*fp32", "*fp32"]
    options = triton_decode.SPLIT_OPTIONS
    return {
        "split": ahead.triton_kernel(triton_decode.split_kernel, types, plan.split_launch()[1], **options),
        "merge": ahead.triton_kernel(
            triton_decode.merge_kernel, ["*fp32", "*fp32", "*bf16", "*fp32"], plan.merge_launch()[1],
            **triton_decode.MERGE_OPTIONS,
        ),
    }  # fmt: skip


def attempt_layer(strategy: str) -> dict:
    """Attention of the 7B model at 128k tokens over eight GPUs, forward and backward."""
    mesh, row = ahead.mesh("h100", {"context": 8}), P(None, "context")
    attend = partial(context_parallel.attend, axis="context", strategy=strategy, backend="mosaic")
    split = jax.shard_map(attend, mesh=mesh, in_specs=(row,) * 5, out_specs=(row, row), check_vma=False)

    def layer(q, k, v, start, stop):
        out, vjp = jax.vjp(lambda *qkv: split(*qkv, start, stop)[0], q, k, v)
        return out, *vjp(q)

    array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((1, LAYER, *shape), dtype)  # noqa: E731
    q, kv, ends = array(28, 128), array(4, 128), array(dtype=jnp.int32)
    start = time.monotonic()
    try:
        report = ahead.compile_for(mesh, layer, q, kv, kv, ends, ends, specs=(row,) * 5)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:400]}
    return report | {"seconds": round(time.monotonic() - start, 1)}
