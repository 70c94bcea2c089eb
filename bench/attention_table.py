"""Rows for `kernels/autotune.json` from a measurement, none of which hides another."""

from collections import defaultdict

from attention_cases import Case

from videoauto_jax.kernels import backends

LAST = {"attend": "reference", "decode": "composed"}
"""Operation -> what serves every call, and so ends every row, timed or not."""


def rows(results: dict) -> list[dict]:
    """One row per call that can be told apart, the narrowest first; they go before the table's general rows.

    Cases that look alike when a backend is chosen, such as branches with equal and unequal caches, share a row, ordered
    by the sum of their times. For calls that may be differentiated, that is the time with gradients.
    """
    costs = defaultdict(list)
    for record in results["cases"]:
        case = Case(**record["case"])
        kinds = {True: "", False: "+grad"} if case.operation == "attend" else {False: ""}
        for forward_only, suffix in kinds.items():
            times = {name: record["seconds"].get(f"{name}{suffix}") for name in backends.MODULES[case.operation]}
            if suffix == "" or case.backward:
                costs[_facts(case, results["device"], forward_only)].append(times)
    found = [dict(facts) | {"order": _order(dict(facts)["operation"], times)} for facts, times in costs.items()]
    return sorted(found, key=lambda row: (-row["least_keys"], -row["least_bound"]))


def _facts(case: Case, device: str, forward_only: bool) -> tuple:
    q, k, *_ = case.shapes()
    facts = backends.facts(case.operation, q, k, case.mask(), forward_only=forward_only)
    return tuple((facts | {"device": device}).items())


def _order(operation: str, times: list[dict[str, float | None]]) -> list[str]:
    """Backends that served all of the cases, fastest first, up to the one that serves every call."""
    served = [name for name in times[0] if all(each[name] is not None for each in times)]
    order = sorted(served, key=lambda name: sum(each[name] for each in times))
    last = LAST[operation]
    return order[: order.index(last) + 1] if last in order else [*order, last]
