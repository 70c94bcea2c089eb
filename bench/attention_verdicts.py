"""What a measurement of attention says about the targets: each with its number and whether that is enough."""

from collections.abc import Callable, Iterator

from videoauto_jax.kernels import backends

Record = dict
LONG = 16 * 1024
"""Tokens from which on the forward and backward targets hold; decoding's hold from twice as many on."""

TARGETS: dict[str, tuple[float, Callable[[float, float], bool], str]] = {
    "forward": (1.0, float.__ge__, "speed of mosaic over cuDNN's, forward"),
    "backward": (0.9, float.__ge__, "speed of mosaic over cuDNN's, backward alone"),
    "packed": (0.9, float.__ge__, "useful FLOP/s of mosaic on packed rows over those on one document of that length"),
    "bandwidth": (0.75, float.__ge__, "bytes per second of decoding over those of a copy"),
    "composition": (1.3, float.__ge__, "speed of triton over that of the composition of other kernels"),
    "auto": (1.03, float.__le__, "time of auto over that of the fastest backend"),
}
"""Target -> what is wanted, how it is compared, and of what."""


def verdicts(results: dict) -> list[dict]:
    """One record per target and case that it is about; `passed` is None where something was not measured."""
    by_name = {record["name"]: record for record in results["cases"]}
    found = []
    for record in results["cases"]:
        for target, value in _values(record, by_name, results["copy_bytes_per_second"]):
            wanted, holds, meaning = TARGETS[target]
            passed = None if value is None else holds(float(value), wanted)
            verdict = {"target": target, "case": record["name"], "value": value, "wanted": wanted, "passed": passed}
            found.append(verdict | {"meaning": meaning})
    return found


def show(found: list[dict]) -> None:
    """One line per target, and one for each case that fails it."""
    for target, (wanted, _, meaning) in TARGETS.items():
        mine = [verdict for verdict in found if verdict["target"] == target]
        passed = sum(verdict["passed"] is True for verdict in mine)
        unknown = sum(verdict["passed"] is None for verdict in mine)
        print(f"{target}: {passed} of {len(mine)} pass, {unknown} not measured ({meaning}; wanted {wanted})")
        for verdict in mine:
            if verdict["passed"] is False:
                print(f"  {verdict['case']}: {verdict['value']:.3f}")


def _values(record: Record, by_name: dict[str, Record], copy: float) -> Iterator[tuple[str, float | None]]:
    case, seconds = record["case"], record["seconds"]
    mosaic = seconds.get("mosaic")
    if case["operation"] == "attend":
        if case["causal"] and not case["documents"] and not case["queries"] and case["length"] >= LONG:
            yield "forward", _ratio(seconds.get("cudnn"), mosaic)
            if case["backward"]:
                yield "backward", _ratio(_backward(seconds, "cudnn"), _backward(seconds, "mosaic"))
        if case["causal"] and case["documents"] and not case["bounded"]:
            whole = by_name.get(record["name"].replace("packed", "causal"), {"seconds": {}, "flops": 0.0})
            rate = lambda x: _ratio(x["flops"], x["seconds"].get("mosaic"))  # noqa: E731
            yield "packed", _ratio(rate(record), rate(whole))
    elif case["length"] >= 2 * LONG:
        yield "bandwidth", _ratio(_ratio(record["bytes"], seconds.get("triton")), copy)
        yield "composition", _ratio(seconds.get("composed"), seconds.get("triton"))
    for suffix in ("", "+grad") if case["backward"] else ("",):
        mine = [
            seconds[f"{name}{suffix}"] for name in backends.MODULES[case["operation"]] if f"{name}{suffix}" in seconds
        ]
        yield "auto", _ratio(seconds.get(f"auto{suffix}"), min(mine, default=None))


def _backward(seconds: dict[str, float], name: str) -> float | None:
    """Time of the backward pass alone."""
    both = seconds.get(f"{name}+grad"), seconds.get(name)
    return None if None in both else both[0] - both[1]


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
