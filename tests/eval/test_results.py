"""What a finished evaluation of benchmarks offers: tables, a report, other scores, through the command line."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from videoauto_jax.cli.eval import benchmarks_table
from videoauto_jax.cli.main import main
from videoauto_jax.config import dump_config
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import UsageError
from videoauto_jax.eval import runner
from videoauto_jax.eval.config import BenchmarkConfig, EvalConfig
from videoauto_jax.eval.export import COLUMNS, benchmark_rows, to_csv, to_latex
from videoauto_jax.eval.records import judge
from videoauto_jax.eval.results import Results
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer
from videoauto_jax.sampling.sampler import SamplingConfig

NAMES = ("videomme", "charades")
SAID = [("A", "A"), ("[1, 3]", "B"), ("C", "[2, 4]"), ("D", "D")]


class Answers:
    """A processor and a model in one: a question is its number."""

    def encode(self, messages):
        return Number(re.search(r"#(\d+)", messages[-1]["content"][-1]["text"])[1])

    def stream(self, prompts, sampling):
        for position, n in enumerate(prompts):
            text = r"\boxed{{{}}}<think>so</think>\boxed{{{}}}".format(*SAID[n])
            values = (np.zeros(10 + n, np.int32), np.zeros(10 + n, np.float32), np.zeros(10 + n, np.float32))
            yield position, make_answer(text, *values, 0.2 * n, FINISH_REASONS.index("stop"), 4)


class Number(int):
    token_ids = (0,) * 9


@pytest.fixture
def finished(monkeypatch, benchmark_root, tmp_path):
    """The recipe of a run of two benchmarks that `videoauto eval` has finished."""
    monkeypatch.setattr(runner, "check_model", lambda config: None)
    monkeypatch.setattr(DataConfig, "processor", lambda data, model: Answers())
    monkeypatch.setattr(runner, "ModelAnswerer", lambda config, processor: Answers())
    config = EvalConfig(
        str(tmp_path), str(tmp_path / "run"), sampling=SamplingConfig(mode="record", threshold=0.3),
        root=str(benchmark_root), benchmarks={name: BenchmarkConfig() for name in NAMES}, published="VideoAuto-R1-7B",
    )  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(config))
    assert main(["eval", "-c", str(recipe)]) == 0
    return tmp_path / "run"


def test_tables_stand_beside_the_published_results(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    rows = benchmark_rows(summary)
    assert [row["benchmark"] for row in rows] == ["VideoMME", "Charades-STA"]
    assert rows[0]["published"] == 67.3 and rows[0]["difference"] == rows[0]["score"] - 67.3
    assert (finished / "table.csv").read_text() == to_csv(rows)
    assert to_csv(rows).splitlines()[0] == ",".join(COLUMNS)
    latex = to_latex(rows)
    assert "A \\& B\\_1 & " in to_latex([rows[0] | {"benchmark": "A & B_1"}])
    assert latex == (finished / "table.tex").read_text() and latex.count("\\\\") == 3 and "Thinks, \\%" in latex


def test_a_score_of_nothing_is_shown(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for found in summary["benchmarks"].values():
        found["modes"]["auto"]["score"] = 0.0
    heads = [column.header for column in benchmarks_table(summary).columns]
    assert "Score" in heads and "Skipped" not in heads


def test_the_report_shows_benchmarks_and_filters_without_a_script(finished):
    html = (finished / "report.html").read_text()
    outline = Outline(html)
    assert outline.open == [] and "script" not in outline.tags
    for text in ("VideoMME", "67.3", "Charades-STA", "Counting Problem", "mended by thinking", "Published results"):
        assert text in outline.text, text
    marks = set(re.findall(r"pick-([a-z]+-\d+)", html))
    shown = " ".join(re.findall(r'<article class="([^"]*)"', html)).split()
    assert {"source-1", "source-2"} <= marks and {"source-1", "source-2"} <= set(shown)


def test_scores_again_without_a_model(finished, tmp_path):
    assert main(["eval", "rescore", str(finished), str(tmp_path / "strict"), "profile=strict", "threshold=0"]) == 0
    summary = json.loads((tmp_path / "strict" / "summary.json").read_text())
    assert summary["profile"] == "strict" and summary["benchmarks"]["videomme"]["modes"]["auto"]["think_ratio"] == 0
    assert main(["eval", "rescore", str(finished), str(tmp_path / "strict")]) == 2
    before = (finished / "samples.jsonl").read_bytes()
    assert main(["eval", "rescore", str(finished), str(finished), "--force"]) == 2
    assert (finished / "samples.jsonl").read_bytes() == before


def test_two_runs_are_compared(finished, tmp_path, capsys):
    other = str(tmp_path / "strict")
    assert main(["eval", "rescore", str(finished), other, "threshold=0"]) == 0
    capsys.readouterr()
    assert main(["eval", "compare", str(finished), other, "resamples=20", f"output={tmp_path}/c.json"]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["videomme"]["n"] == 4 and "95 %" in capsys.readouterr().out


def test_what_the_gate_cut_short_is_not_scored_as_if_it_had_not(finished, tmp_path, capsys):
    recipe = finished / "config.yaml"
    recipe.write_text(recipe.read_text().replace("mode: record", "mode: auto"))
    assert main(["eval", "compare", str(finished), str(finished), "mode=second"]) == 2
    assert "tells nothing of mode second" in capsys.readouterr().err
    assert main(["eval", "rescore", str(finished), str(tmp_path / "again"), "threshold=0.9"]) == 2
    assert "tells nothing of mode second" in capsys.readouterr().err
    assert main(["eval", "calibrate", str(finished)]) == 2
    assert "tells nothing of mode second (" in capsys.readouterr().err
    assert main(["eval", "rescore", str(finished), str(tmp_path / "again"), "profile=strict"]) == 0


def test_a_threshold_is_calibrated(finished):
    assert main(["eval", "calibrate", str(finished), "seed=4"]) == 0
    found = json.loads((finished / "calibration.json").read_text())
    assert set(found) == set(NAMES) and (finished / "calibration" / "report.html").exists()


def test_a_folder_without_an_evaluation_is_told(tmp_path, finished):
    with pytest.raises(UsageError, match="no evaluation in this folder"):
        Results(tmp_path)
    (finished / "samples.jsonl").unlink()
    with pytest.raises(UsageError, match="no answers yet"):
        Results(finished)


class Outline(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in {"meta", "img", "br", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_minimal_pairs_are_judged_without_what_the_prompt_begins():
    record = {"benchmark": "mvp_mini", "boxed": True, "text": r"\boxed{Answer: A}<think>or b, which"}
    record["row"] = {"candidates": ["x", "y"], "answer": "y", "video_id": "v_1"}
    for profile, second in (("paper", "B"), ("strict", "")):  # published, the whole text behind what was begun
        assert judge(record, "second", profile)[1].prediction == second
        assert judge(record, "first", profile)[1].prediction == "A"
