"""bench/attention.py from end to end on tiny cases: no second of a GPU should go to a typing mistake."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.kernels import backends, composed
from videoauto_jax.kernels.quantized import Quantized

MODULES = ("attention", "attention_cases", "attention_peers", "attention_plot", "attention_table", "attention_verdicts")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    yield importlib.import_module("attention")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_measurement_is_written_judged_drawn_and_tabled(bench, monkeypatch, tmp_path, capsys):
    import attention_cases

    kinds = "7b-causal-16k", "8b-shared", "windows-80", "7b-decode-64k-int8"
    some = [next(case for case in attention_cases.cases() if kind in case.name) for kind in kinds]
    for name, value in {"cases": lambda: some, "COPIED": 2**10, "ROUNDS": 2, "LIMIT": 3e-2}.items():
        monkeypatch.setattr(bench, name, value)
    bench.main(["--tiny", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "attention.json").read_text())
    for record in results["cases"]:
        best = "composed" if "decode" in record["name"] else "reference"
        both = "" if "decode" in record["name"] else "+grad"
        assert set(record["seconds"]) == {best, "auto"} | {f"{best}{both}", f"auto{both}"}, record
        assert set(record["errors"]) == {best}
        assert record["auto"]["auto"] == best and ("triton" if best == "composed" else "mosaic") in record["refused"]
    assert {verdict["target"] for verdict in results["verdicts"]} == {"auto"}  # the others are about long rows
    assert (tmp_path / "attention.png").stat().st_size > 1000
    capsys.readouterr()
    bench.main(["--out", str(tmp_path), "--table"])
    rows = json.loads(f"[{capsys.readouterr().out}]")
    assert len(rows) == 3 * 2 + 1  # forward only and with a gradient; decoding
    assert {tuple(row["order"]) for row in rows} == {("reference",), ("composed",)}


def test_scales_that_are_not_read_are_found(bench, monkeypatch):
    """Of keys and of values alike, in either cache."""
    import attention_cases

    case = next(case for case in attention_cases.cases() if "7b-decode-64k-int8" in case.name)
    case = attention_cases.small(attention_cases.tiny(case))
    assert bench.check(case, ["composed"])["composed"] < 1e-2
    real = composed.dequantize
    for wrong in range(4):
        calls = []

        def forgetful(x, dtype, calls=calls, wrong=wrong):
            calls.append(x)
            plain = isinstance(x, Quantized) and len(calls) % 4 == wrong
            return (x.values.astype(np.float32) / 100).astype(dtype) if plain else real(x, dtype)

        with monkeypatch.context() as patch:
            patch.setattr(composed, "dequantize", forgetful)
            assert "wrong" in bench.check(case, ["composed"])["composed"]


def measured(bench, cases, times):
    """Results in which backends take so long."""
    import dataclasses

    records = [
        {"name": case.name, "case": dataclasses.asdict(case), "flops": case.flops, "bytes": case.bytes, "seconds": each}
        for case, each in zip(cases, times)
    ]
    return {"device": "NVIDIA H100 80GB HBM3", "copy_bytes_per_second": 3e12, "cases": records}


def test_verdicts(bench):
    import attention_cases
    import attention_verdicts

    names = "7b-causal-32k", "7b-packed-32k", "7b-decode-64k-bfloat16"
    whole, packed, decode = (next(c for c in attention_cases.cases() if c.name == name) for name in names)
    attend = {"cudnn": 9.0, "mosaic": 10.0, "cudnn+grad": 27.0, "mosaic+grad": 29.0, "auto": 9.2, "auto+grad": 29.0}
    times = [attend, {"mosaic": 10.0 * packed.flops / whole.flops / 0.95}, {"triton": decode.bytes / 2.4e12}]
    times[2] |= {"composed": times[2]["triton"] * 1.2, "auto": times[2]["triton"]}
    found = attention_verdicts.verdicts(measured(bench, (whole, packed, decode), times))
    values = {(verdict["target"], verdict["case"]): (verdict["value"], verdict["passed"]) for verdict in found}
    expected = {
        ("forward", names[0]): (0.9, False), ("backward", names[0]): (18 / 19, True),
        ("packed", names[1]): (0.95, True), ("bandwidth", names[2]): (0.8, True),
        ("composition", names[2]): (1.2, False),
    }  # fmt: skip
    for key, (value, passed) in expected.items():
        assert values[key][1] is passed
        np.testing.assert_allclose(values[key][0], value)
    autos = [(verdict["case"], verdict["passed"]) for verdict in found if verdict["target"] == "auto"]
    assert autos == [(names[0], True), (names[0], False), (names[1], None), (names[1], None), (names[2], True)]


def test_no_row_of_the_table_hides_another(bench, monkeypatch):
    """Each case's measured order is what `auto` then takes, in its own row."""
    import attention_cases
    import attention_table

    chosen = [case for case in attention_cases.cases() if not case.ragged]  # which share rows with equal caches
    rng = np.random.default_rng(0)
    names = {"attend": ("mosaic", "cudnn", "splash"), "decode": ("triton", "composed")}
    times = [{f"{n}{s}": rng.random() for n in names[case.operation] for s in ("", "+grad")} for case in chosen]
    results = measured(bench, chosen, times)
    rows = attention_table.rows(results)
    monkeypatch.setattr(backends, "_table", lambda: {"rows": rows})
    monkeypatch.setattr(backends, "device_kind", lambda: results["device"])
    for case, each in zip(chosen, times):
        q, k, *_ = case.shapes()
        for suffix in ("", "+grad") if case.backward else ("",):
            order = backends.preferences(
                case.operation, q, k, case.mask(), forward_only=suffix == "" and case.operation == "attend"
            )
            assert each[f"{order[0]}{suffix}"] == min(each[f"{n}{suffix}"] for n in names[case.operation]), case.name


def test_a_whole_run_takes_less_than_nine_minutes(bench):
    import attention_cases

    assert 120 < bench.estimate(attention_cases.cases()) < 480


def test_useful_work_is_what_the_mask_allows(bench):
    import attention_cases

    for case in (
        attention_cases.Case("", "attend", 3, 1, 8, 100, documents=(30, 8)),
        attention_cases.Case("", "attend", 3, 1, 8, 100, documents=(30, 8), causal=False),
        attention_cases.Case("", "attend", 3, 1, 8, 100),
        attention_cases.Case("", "attend", 3, 1, 8, 100, queries=70),
    ):
        mask = case.mask()
        pairs = float(np.sum(mask.stop - mask.start))
        assert case.flops == 4 * 3 * 8 * pairs
