"""bench/sampling.py on tiny sizes: its figures are figures, and no second of a GPU goes to a typing mistake."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.models.config import read_config


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    module = importlib.import_module("sampling")
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module.sampling_gpu, "ROUNDS", 1)
    monkeypatch.setattr(module.sampling_gpu, "CACHES", ("model", "int8"))  # every dtype takes its programs
    yield module
    for name in ("sampling", "sampling_gpu", "sampling_theirs", "sampling_work"):
        sys.modules.pop(name, None)


def test_figures(bench, tiny_folder):
    theirs = {"seconds": 1.0, "length": 128}
    parts = bench.sampling_gpu.measure(read_config(tiny_folder), tiny_folder, [128], 1e9, theirs, slots=2, tokens=16)
    found = {name: figure for part in parts for name, figure in part.items()}
    assert 0 < found["mean |difference| of log p"]["model"] < 0.1 and found["2 slots, tokens/s"] > 0
    assert found["16 continuations of 128"]["against transformers"] > 0
    steps = [found[f"16 branches behind 128{kind}"] for kind in ("", ", int8")]
    assert np.isfinite([list(step.values()) for step in steps]).all()
    config = read_config(tiny_folder).text
    assert steps[1]["floor_ms"] * 1e6 > 2 * config.num_layers * 3 * config.hidden_size * config.intermediate_size
    assert steps[0]["floor_ms"] > steps[1]["floor_ms"]
    saved = bench.gate(tiny_folder, 6, 2, 64, 64)
    assert 0 < saved["saved_tokens"] < 1 and 0.3 < saved["useful_share"]["record"] <= 1
    held = bench.groups(tiny_folder, 4, 2, 2, 64, 64)
    assert 0.2 < held["useful_share"] <= 1 and 0.2 < held["useful_share_one_by_one"] <= 1
    figures = {"gate": saved, "groups": held, "transformers": {"ratio": 6.0, "ratios": [5.5, 6.5]}}
    lines = bench.summary(figures | {"eight_bits": {"what": "", "int8": 1e-5}})
    assert "6.0 (5.5 to 6.5 in 2 rounds; wanted 5)" in lines[0] and f"{saved['ratio']:.2f}" in lines[2]


def test_what_transformers_takes(bench, tiny_folder):
    pytest.importorskip("torch")
    facts = json.loads((tiny_folder / "config.json").read_text())
    found = bench.sampling_theirs.measure(facts, 64, 4, 8, "cpu")
    assert found["seconds"] > 0 and (found["together"], found["tokens"], found["length"]) == (4, 8, 64)
