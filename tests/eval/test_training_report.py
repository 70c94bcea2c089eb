"""The page of a training run holds what was logged, and nothing in it is taken for HTML."""

import json

import pytest

from videoauto_jax.errors import DataError
from videoauto_jax.eval.training_report import training_report, write_training_report

METRICS = [
    {"step": n, "time": 0.0, "reward": 1.0 + n, "loss": None if n == 2 else 0.1 * n, "seconds/decode": 2.0 * n}
    for n in range(1, 4)
]


def rollout(number):
    branches = [{"text": "\\boxed{A}<think>so</think>", "confidence": 0.5, "reward": 1.25}]
    branches.append({"text": "none", "confidence": None, "reward": 0.0})
    question = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Is 1 < 2?"}]
    return {"round": number, "id": f"toy/{number}", "question": question, "truth": [1.0, 2.0], "branches": branches}


def test_curves_phases_and_rollouts_are_on_the_page():
    html = training_report("first", METRICS, [rollout(n) for n in range(1, 30)])
    assert "Training: first" in html and "3 steps logged" in html and "<svg" in html
    assert "<td class=text>decode</td><td>4.00</td><td>6.00</td>" in html
    assert "Is 1 &lt; 2?" in html and "\\boxed{A}&lt;think&gt;so&lt;/think&gt;" in html and "<think>" not in html
    assert html.index("Round 29: toy/29") < html.index("Round 28: toy/28") and "Round 9: toy/9" not in html
    assert html.count("<details open") == 1 and "1.250" in html and "Truth: [1.0, 2.0]" in html


def test_the_page_lies_in_the_folder_of_the_run(tmp_path):
    with pytest.raises(DataError, match="metrics.jsonl"):
        write_training_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    html = write_training_report(tmp_path).read_text()
    assert "Rollouts" not in html and "Curves" in html
