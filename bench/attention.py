"""Speed of attention on one GPU: our kernels, cuDNN, tokamax and torch, taking turns in one run.

    python bench/attention.py                     measures; under 9 minutes on one H100
    python bench/attention.py --tiny              the same on short rows, on a CPU: whether everything runs
    python bench/attention.py --aot [--only 7b]   compiles every case for an H100 and TPUs, on any machine
    python bench/attention.py --table             rows for kernels/autotune.json, from the last measurement

Numbers first: every kernel is compared with float32 reference attention on fresh random inputs before it is timed, and
one that is wrong is not timed. Results, and whether they reach the targets, go to bench/results/attention.json and
attention.png.
"""

import argparse
import dataclasses
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

if "--aot" in sys.argv:
    import ahead  # noqa: F401  sets the environment that jax reads when it is imported

import attention_peers
import attention_table
import attention_verdicts
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case, cases, small, tiny

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.quantized import Quantized, quantize

RESULTS = Path(__file__).parent / "results"
LIMIT = 1e-2
"""Norm of the error over norm of the result, at most."""
ROUNDS = 5
LONGEST_REFERENCE = 8192
"""Tokens of the longest row that the reference is timed on: it would take longer than all others together."""
COPIED, COPIES = 2**28, 16
"""Numbers copied, and how often, to learn the memory's speed."""
COMPILERS = 8
"""Programs compiled at once."""
COMPILING = 8.0
"""Seconds that compiling all programs of a case takes, at a guess; see `estimate`."""

Errors = dict[tuple, dict[str, float | str]]
"""Kernel -> backend -> its error, or what is wrong with it."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aot", action="store_true", help="compile only, for devices that are not here")
    parser.add_argument("--table", action="store_true", help="print rows for kernels/autotune.json")
    parser.add_argument("--tiny", action="store_true", help="short rows, few heads")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--backend", default="", help="compile this backend only")
    parser.add_argument("--seconds", type=float, default=480, help="start no case after this time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args(arguments)
    chosen = [tiny(case) if options.tiny else case for case in cases() if options.only in case.name]
    if options.table:
        rows = attention_table.rows(json.loads((options.out / "attention.json").read_text()))
        return print(*map(json.dumps, rows), sep=",\n")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.aot:
        import attention_ahead

        found = attention_ahead.compile_all(chosen, options.only, options.backend)
        return write(options.out / "attention_aot.json", found)
    print(f"{len(chosen)} cases; {estimate(chosen) / 60:.0f} minutes on an H100, at a guess", flush=True)
    results = measure_all(chosen, time.monotonic() + options.seconds)
    results["verdicts"] = attention_verdicts.verdicts(results)
    write(options.out / "attention.json", results)
    attention_verdicts.show(results["verdicts"])
    import attention_plot

    attention_plot.draw(results, options.out / "attention.png")


def write(path: Path, content: dict) -> None:
    """Writes JSON and says where."""
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")


def estimate(chosen: list[Case]) -> float:
    """Seconds on an H100 at a guess: compiling, and five programs in turns, with gradients 4.5 times as long."""
    timed = sum(5 * (1 + ROUNDS) * case.calls * case.guess * (5.5 if case.backward else 1) for case in chosen)
    return COMPILING * len(chosen) + timed


def measure_all(chosen: list[Case], deadline: float) -> dict:
    """Numbers, then times, of all cases."""
    device, errors = jax.devices()[0].device_kind, {}
    results = {"device": device, "jax": jax.__version__, "copy_bytes_per_second": copy_bandwidth(), "cases": []}
    for case in chosen:
        if time.monotonic() > deadline:
            results["left_out"] = [c.name for c in chosen[len(results["cases"]) :]]
            print("out of time; left out:", *results["left_out"])
            break
        results["cases"].append(record := measure(case, errors))
        times = {name: f"{seconds * 1e3:.3f} ms" for name, seconds in record["seconds"].items()}
        print(case.name, times, record["refused"], flush=True)
    return results


def measure(case: Case, errors: Errors) -> dict:
    """One case with every backend that serves it, and with the peers."""
    names = [name for name in backends.MODULES[case.operation] if not too_long(case, name)]
    peers, missing = attention_peers.programs(case)
    mine = {}
    for name in names:
        mine |= {name: case.function(name)} | ({f"{name}+grad": case.gradient(name)} if case.backward else {})
    if case.kernel not in errors:
        errors[case.kernel] = check(small(case), names)
    found = errors[case.kernel]
    wrong = {name: error for name, error in found.items() if isinstance(error, str)}
    right = {name: run for name, run in mine.items() if name.removesuffix("+grad") not in wrong}
    programs, refused = compiled(right | peers, case.shapes())
    operands = random(case, seed=0)
    runs = {name: partial(repeated, program, operands) for name, program in programs.items()}
    auto = automatic(case)
    runs |= {run: runs[name] for run, name in auto.items() if name in runs}
    torch, missing_torch = attention_peers.torch_runs(case)
    refused = missing | missing_torch | wrong | refused
    times = in_turns(runs | torch, case.calls, refused)
    return {
        "name": case.name, "case": dataclasses.asdict(case), "flops": case.flops, "bytes": case.bytes, "auto": auto,
        "refused": refused, "errors": {name: error for name, error in found.items() if name not in wrong},
        "seconds": {name: float(np.median(each)) / case.calls for name, each in times.items()},
    }  # fmt: skip


def too_long(case: Case, backend: str) -> bool:
    """Whether a backend would take more time than the whole measurement has."""
    return backend == "reference" and case.length > LONGEST_REFERENCE


def automatic(case: Case) -> dict[str, str]:
    """What `auto` is, without and with a gradient: the program of the backend it takes, timed in a turn of its own."""
    q, k, v, *own = case.shapes()
    rest = (v, case.mask(), *own, jnp.asarray(case.lengths())[None], 0) if own else (v, case.mask())
    take = partial(backends.choose, case.operation, "auto", q, k, *rest)
    of_module = {backends.module(case.operation, name): name for name in _importable(case.operation)}
    if case.operation == "decode":
        return {"auto": of_module[take()]}
    both = {"auto": of_module[take(forward_only=True)]}
    return both | ({"auto+grad": f"{of_module[take()]}+grad"} if case.backward else {})


def _importable(operation: str) -> list[str]:
    found = []
    for name in backends.MODULES[operation]:
        try:
            backends.module(operation, name)
        except ImportError:
            continue
        found.append(name)
    return found


def compiled(functions: dict, shapes: tuple) -> tuple[dict, dict[str, str]]:
    """Programs, compiled at once; and what each of the others fails with."""
    programs, refused = {}, {}
    with ThreadPoolExecutor(COMPILERS) as pool:
        waiting = {
            name: pool.submit(lambda run=run: jax.jit(run).lower(*shapes).compile()) for name, run in functions.items()
        }
    for name, program in waiting.items():
        try:
            programs[name] = program.result()
        except Exception as error:  # one that fails must not end the run
            refused[name] = str(error)[:300]
    return programs, refused


def repeated(program, operands: tuple, calls: int) -> None:
    """Makes so many calls and waits for them."""
    jax.block_until_ready([program(*operands) for _ in range(calls)])


def in_turns(runs: dict, calls: int, refused: dict) -> dict[str, list[float]]:
    """Times of each run, one of each per round, so that a change of clocks meets all alike.

    A run that fails the first time goes to `refused` with its reason.
    """
    for name in list(runs):
        try:
            runs[name](calls)
        except Exception as error:
            refused[name] = str(error)[:300]
            del runs[name]
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(calls)
            times[name].append(time.perf_counter() - start)
    return times


def check(case: Case, names: list[str]) -> dict[str, float | str]:
    """Of each backend the largest relative error of results and gradients against float32, or what is wrong."""
    operands = random(case, seed=time.time_ns() % 2**31)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, operands)
    expected = jax.jit(case.expected())(*wide)
    functions = {name: (case.gradient if case.backward else case.function)(name) for name in names}
    programs, found = compiled(functions, case.shapes())
    for name, program in programs.items():
        poison = [jnp.full(x.shape, jnp.nan, jnp.bfloat16) for x in jax.tree.leaves(expected)]
        jax.block_until_ready(poison)
        del poison  # freed memory full of NaN: what a kernel leaves unwritten shows
        try:
            pairs = zip(jax.tree.leaves(program(*operands)), jax.tree.leaves(expected))
            errors = [float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)) for a, b in pairs]
        except Exception as error:
            found[name] = str(error)[:300]
            continue
        found[name] = max(errors) if max(errors) < LIMIT else f"wrong: relative errors {errors}"
    return found


def random(case: Case, seed: int) -> tuple:
    """Random operands of a case; cached vectors have lengths of their own, so that no scale can stand for another."""
    keys = iter(jax.random.split(jax.random.key(seed), 16))

    def one(shape: jax.ShapeDtypeStruct | Quantized) -> jax.Array | Quantized:
        x = jax.random.normal(next(keys), shape.shape)
        if x.ndim > 4:
            x = x * jnp.exp(jax.random.normal(next(keys), (*shape.shape[:-1], 1)) / 2)
        return quantize(x, shape.dtype) if isinstance(shape, Quantized) else x.astype(shape.dtype)

    return jax.tree.map(one, case.shapes(), is_leaf=lambda x: isinstance(x, Quantized))


def copy_bandwidth() -> float:
    """Bytes per second that plain copies, one after the other, read and write."""
    x = jnp.zeros(COPIED, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    times = in_turns({"copy": partial(repeated, copy, (x,))}, COPIES, {})["copy"]
    return COPIES * 2 * x.nbytes / float(np.median(times))


if __name__ == "__main__":
    main()
