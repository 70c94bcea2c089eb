"""Compiles what `attention.py` measures for devices that are not here, and whole layers split over eight of them."""

import time
from collections.abc import Callable
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
    "v5p:2x2x1": ("splash", "composed"),
    "v6e:2x2": ("splash", "composed"),
}
"""Where to compile -> backends that are compiled there."""
LENGTH = 131072
"""Tokens of the layers."""


def compile_all(chosen: list[Case], only: str, just: str) -> dict:
    """One record per case, backend and target: what the compiler reports, or why the backend refuses.

    Args:
        chosen: the cases.
        only: part of the names of the layers compiled.
        just: the backend compiled; "" for all.
    """
    work = [
        (case.name, backend, target, partial(attempt, case, backend, target))
        for case, backend, target in wanted(chosen)
    ]
    work += [layer for layer in layers() if only in layer[0]]
    records = []
    for name, backend, target, build in work:
        if just in ("", backend):
            records.append({"case": name, "backend": backend, "target": target} | reported(build))
            print(*records[-1].values(), flush=True)
    return {"jax": jax.__version__, "records": records}


def layers() -> list[tuple[str, str, str, Callable[[], dict]]]:
    """Name, backend, target and what compiles it: attention of a layer at 128k tokens over eight devices."""
    gpu = "h100"
    found = [
        (f"layer-128k-{name}", "mosaic", gpu, partial(over_context, gpu, name, "mosaic"))
        for name in context_parallel.STRATEGIES
    ]
    found.append(("layer-128k-decode", "triton", gpu, partial(decoding, gpu, "triton")))
    for target in ("v5p:2x2x2", "v6e:2x4"):
        found.append(("layer-128k-heads", "splash", target, partial(over_heads, target, "splash")))
        found.append(("layer-128k-gather", "reference", target, partial(over_context, target, "gather", "reference")))
        found.append(("layer-128k-decode", "composed", target, partial(decoding, target, "composed")))
    return found


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
    function = case.gradient(backend) if case.backward else case.function(backend)
    report = ahead.compile_for(ahead.mesh(target, {"data": 1}), function, *case.shapes())
    return report | ({"kernels": triton_kernels(case)} if backend == "triton" else {})


def reported(build: Callable[[], dict]) -> dict:
    """What `build` reports and how long it took, or its error: the test decides which may fail."""
    start = time.monotonic()
    try:
        report = build()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:400]}
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


def over_context(target: str, strategy: str, backend: str) -> dict:
    """The 7B model's attention, forward and backward, its rows split."""
    mesh, row = ahead.mesh(target, {"context": 8}), P(None, "context")
    attend = partial(context_parallel.attend, axis="context", strategy=strategy, backend=backend)
    split = jax.shard_map(attend, mesh=mesh, in_specs=(row,) * 5, out_specs=(row, row), check_vma=False)

    def layer(q, k, v, start, stop):
        out, vjp = jax.vjp(lambda *qkv: split(*qkv, start, stop)[0], q, k, v)
        return out, *vjp(q)

    array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((1, LENGTH, *shape), dtype)  # noqa: E731
    q, kv, ends = array(28, 128), array(4, 128), array(dtype=jnp.int32)
    return ahead.compile_for(mesh, layer, q, kv, kv, ends, ends, specs=(row,) * 5)


def over_heads(target: str, backend: str) -> dict:
    """The 8B model's, its heads split."""
    case = Case("", "attend", 32, 8, 128, LENGTH)
    heads = P(None, None, "tensor")
    return ahead.compile_for(
        ahead.mesh(target, {"tensor": 8}), case.gradient(backend), *case.shapes(), specs=(heads,) * 3
    )


def decoding(target: str, backend: str) -> dict:
    """The 7B model's over a prompt whose cache is split."""
    case = Case("", "decode", 28, 4, 128, LENGTH)
    keys, own = P(None, None, "context"), P()
    report = ahead.compile_for(
        ahead.mesh(target, {"context": 8}), case.function(backend), *case.shapes(), specs=(P(), keys, keys, own, own)
    )
    part = Case("", "decode", 28, 4, 128, LENGTH // 8)
    return report | ({"kernels": triton_kernels(part)} if backend == "triton" else {})
