"""bench/eval_gpu.py on tiny sizes: no second of a GPU goes to a typing mistake."""

import importlib
import json
import sys
from pathlib import Path

import pytest

TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 2048,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}  # fmt: skip
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
          "fullatt_block_indexes": [1]}  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    module = importlib.import_module("eval_gpu")
    monkeypatch.setattr(module, "ROUNDS", 1)
    yield module
    for name in ("eval_gpu", "eval", "preprocess", "sampling_work"):
        sys.modules.pop(name, None)


def test_figures(bench, tmp_path):
    facts = json.loads((bench.MODELS / "qwen2.5-vl-7b-instruct.json").read_text())
    facts |= TINY | {"vision_config": facts["vision_config"] | VISION}
    (tmp_path / "model").mkdir()
    facts = bench.make_folder(tmp_path / "model", facts)
    bench.write_benchmark(tmp_path / "videos", 2, 2, 64)
    changes = ["sampling.prompts=2", "data.video.max_frames=4"]
    config = bench.recipe(tmp_path / "model", tmp_path / "videos", changes)
    (found,) = bench.measure(facts, tmp_path / "model", config, [5])
    assert found["5 tokens"]["videos_per_minute"] > 0 and 0 <= found["5 tokens"]["waited_share"] < 1
    assert config.data.video.total_pixels == 16384 * 28 * 28 and found["5 tokens"]["prompt_tokens"] > 20
