"""Speed of attention on one GPU: our kernels, cuDNN, tokamax and torch, taking turns in one run.

    python bench/attention.py                     measures; under 9 minutes on one H100
    python bench/attention.py --aot [--only 7b]   compiles every case for an H100 and TPUs, on any machine
    python bench/attention.py --table             rows for kernels/autotune.json, from the last measurement

Numbers first: every kernel is compared with float32 reference attention on fresh random inputs before it is timed, and
one that is wrong is not timed. Results go to bench/results/attention.json and attention.png.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if "--aot" in sys.argv:
    import ahead  # noqa: F401  sets the environment that jax reads when it is imported

import attention_peers
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case, cases, small

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.quantized import Quantized

RESULTS = Path(__file__).parent / "results"
LIMIT = 1e-2
"""Norm of the error over norm of the result, at most."""
CHECKED: dict[tuple, float] = {}
ROUNDS, CALLS = 5, 4
COPIED = 2**28
"""Numbers copied to learn the memory's speed."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aot", action="store_true", help="compile only, for devices that are not here")
    parser.add_argument("--table", action="store_true", help="print rows for kernels/autotune.json")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=480, help="start no case after this time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if options.only in case.name]
    if options.table:
        return print_table(json.loads((options.out / "attention.json").read_text()))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.aot:
        import attention_ahead

        return write(options.out / "attention_aot.json", attention_ahead.compile_all(chosen, options.only))
    results = measure_all(chosen, time.monotonic() + options.seconds)
    write(options.out / "attention.json", results)
    import attention_plot

    attention_plot.draw(results, options.out / "attention.png")


def write(path: Path, content: dict) -> None:
    """Writes JSON and says where."""
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")


def measure_all(chosen: list[Case], deadline: float) -> dict:
    """Numbers, then times, of all cases."""
    device = jax.devices()[0].device_kind
    results = {"device": device, "jax": jax.__version__, "copy_bytes_per_second": copy_bandwidth(), "cases": []}
    for case in chosen:
        if time.monotonic() > deadline:
            results["left_out"] = [c.name for c in chosen[len(results["cases"]) :]]
            print("out of time; left out:", *results["left_out"])
            break
        results["cases"].append(record := measure(case))
        times = {name: f"{seconds * 1e3:.3f} ms" for name, seconds in record["seconds"].items()}
        print(case.name, times, record["refused"], flush=True)
    return results


def measure(case: Case) -> dict:
    """One case with every backend that serves it, and with the peers."""
    operands, record = random(case, seed=0), {"name": case.name, "flops": case.flops, "bytes": case.bytes}
    runs, record["refused"], record["errors"] = {}, {}, {}
    for backend in backends.MODULES[case.operation]:
        if backend == "reference" and case.length > 8192:
            continue  # would take longer than all others together
        try:
            record["errors"][backend] = checked(small(case), backend)
            runs |= timed(case, backend, operands)
        except Exception as error:  # one that fails must not end the run
            record["refused"][backend] = str(error)[:300]
    times = in_turns(runs | attention_peers.runs(case, operands, CALLS), record["refused"])
    record["seconds"] = {name: float(np.median(each)) / CALLS for name, each in times.items()}
    return record


def timed(case: Case, backend: str, operands: tuple) -> dict:
    """What is timed of a backend: `CALLS` calls, forward, and with gradients."""
    functions = {backend: jax.jit(case.function(backend))}
    if case.backward:
        functions[f"{backend}+grad"] = jax.jit(case.gradient(backend))
    repeated = lambda run: jax.block_until_ready([run(*operands) for _ in range(CALLS)])  # noqa: E731
    return {name: lambda run=run: repeated(run) for name, run in functions.items()}


def in_turns(runs: dict, refused: dict) -> dict[str, list[float]]:
    """Times of each run, one of each per round, so that a change of clocks meets all alike.

    The first call compiles; a run that fails in it goes to `refused` with its reason.
    """
    for name in list(runs):
        try:
            runs[name]()
        except Exception as error:
            refused[name] = str(error)[:300]
            del runs[name]
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def checked(case: Case, backend: str) -> float:
    """`check`, once for each kernel."""
    key = case.kernel, backend
    if key not in CHECKED:
        CHECKED[key] = check(case, backend)
    return CHECKED[key]


def check(case: Case, backend: str) -> float:
    """The largest relative error of output and gradients against float32; raises if it is above `LIMIT`."""
    operands = random(case, seed=time.time_ns() % 2**31)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, operands)
    expected = jax.jit((case.gradient if case.backward else case.function)(oracle(case)))(*wide)
    poison = [jnp.full(x.shape, jnp.nan, jnp.bfloat16) for x in jax.tree.leaves(expected)]
    jax.block_until_ready(poison)
    del poison  # freed memory full of NaN: what a kernel leaves unwritten shows
    got = jax.jit((case.gradient if case.backward else case.function)(backend))(*operands)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected))
    errors = [float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)) for a, b in pairs]
    if not max(errors) < LIMIT:
        raise ValueError(f"wrong: relative errors {errors}")
    return max(errors)


def oracle(case: Case) -> str:
    """The backend that others are compared with."""
    return "reference" if case.operation == "attend" else "composed"


def random(case: Case, seed: int) -> tuple:
    """Random operands of a case."""
    keys = iter(jax.random.split(jax.random.key(seed), 16))

    def one(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.dtype == jnp.int8:
            return jax.random.randint(next(keys), shape.shape, -127, 128, jnp.int8)
        return jax.random.normal(next(keys), shape.shape, jnp.bfloat16).astype(shape.dtype)

    operands = jax.tree.map(one, case.shapes())
    small_scale = lambda x: Quantized(x.values, jnp.abs(x.scale) / 100) if isinstance(x, Quantized) else x  # noqa: E731
    return jax.tree.map(small_scale, operands, is_leaf=lambda x: isinstance(x, Quantized))


def copy_bandwidth() -> float:
    """Bytes per second that a plain copy reads and writes."""
    x = jnp.zeros(COPIED, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    times = in_turns({"copy": lambda: jax.block_until_ready(copy(x))}, {})["copy"]
    return 2 * x.nbytes / float(np.median(times))


def print_table(results: dict) -> None:
    """One row per case, fastest backend first by the sum of what was timed of it."""
    for record in results["cases"]:
        case = next(case for case in cases() if case.name == record["name"])
        mine = [name for name in backends.MODULES[case.operation] if name in record["seconds"]]
        cost = lambda name: record["seconds"].get(f"{name}+grad", record["seconds"][name])  # noqa: B023, E731
        last = oracle(case)
        order = sorted((name for name in mine if name != last), key=cost) + [last]
        facts = {"operation": case.operation, "device": results["device"], "head_size": case.size}
        print(json.dumps(facts | {"least_keys": case.length, "order": order}))


if __name__ == "__main__":
    main()
