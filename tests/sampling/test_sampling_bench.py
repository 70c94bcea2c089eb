"""bench/sampling.py on tiny sizes: its figures are figures, and no second of a GPU goes to a typing mistake."""

import importlib
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
    yield module
    sys.modules.pop("sampling", None)


def test_figures(bench, tiny_folder):
    found = bench.on_gpu(read_config(tiny_folder), tiny_folder, [128], 1e9, slots=2, tokens=16)
    step = found["16 branches behind 128"]
    assert np.isfinite(list(step.values())).all() and found["2 slots, tokens/s"] > 0
    config = read_config(tiny_folder).text
    assert step["floor_ms"] * 1e6 > 2 * config.num_layers * 3 * config.hidden_size * config.intermediate_size
    saved = bench.gate(tiny_folder, 6, 2, 64, 64)
    assert 0 < saved["saved_tokens"] < 1 and 0.3 < saved["useful_share"]["record"] <= 1
    held = bench.groups(tiny_folder, 4, 2, 2, 64, 64)
    assert 0.2 < held["useful_share"] <= 1 and 0.2 < held["useful_share_one_by_one"] <= 1
