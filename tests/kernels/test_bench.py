"""bench/attention.py from end to end on tiny cases: no second of a GPU should go to a typing mistake."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    modules = "attention", "attention_cases", "attention_peers", "attention_plot"
    yield importlib.import_module("attention")
    for name in modules:
        sys.modules.pop(name, None)


def test_a_measurement_is_written_drawn_and_tabled(bench, monkeypatch, tmp_path, capsys):
    import attention_cases

    tiny = [
        attention_cases.Case("7b-causal-1k", "attend", 4, 2, 16, 192),
        attention_cases.Case("7b-packed-1k", "attend", 4, 2, 16, 192, documents=(40, 17), backward=False),
        attention_cases.Case("frames-16", "attend", 2, 2, 16, 192, documents=(32,), causal=False),
        attention_cases.Case("7b-decode-1k-int8", "decode", 4, 2, 16, 192, backward=False, cache="int8"),
    ]
    for name, value in {"cases": lambda: tiny, "COPIED": 2**10, "ROUNDS": 2, "LIMIT": 3e-2}.items():
        monkeypatch.setattr(bench, name, value)
    bench.main(["--out", str(tmp_path)])
    results = json.loads((tmp_path / "attention.json").read_text())
    times = {record["name"]: set(record["seconds"]) for record in results["cases"]}
    assert times["7b-causal-1k"] == {"reference", "reference+grad"} and times["7b-decode-1k-int8"] == {"composed"}
    assert all("mosaic" in record["refused"] for record in results["cases"] if "decode" not in record["name"])
    assert (tmp_path / "attention.png").stat().st_size > 1000
    capsys.readouterr()
    bench.main(["--out", str(tmp_path), "--table"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == {
        "operation": "attend", "device": "cpu", "head_size": 16, "least_keys": 192, "order": ["reference"],
    }  # fmt: skip


def test_useful_work_is_what_the_mask_allows(bench):
    import attention_cases

    for case in (
        attention_cases.Case("", "attend", 3, 1, 8, 100, documents=(30, 8)),
        attention_cases.Case("", "attend", 3, 1, 8, 100, documents=(30, 8), causal=False),
        attention_cases.Case("", "attend", 3, 1, 8, 100),
    ):
        mask = case.mask()
        pairs = float(np.sum(mask.stop - mask.start))
        assert case.flops == 4 * 3 * 8 * pairs
