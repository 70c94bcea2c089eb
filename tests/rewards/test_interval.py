import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoauto_jax.rewards import grade_interval, interval_iou, parse_interval

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "reward_cases.json").read_text())
tenths = st.integers(0, 5000).map(lambda number: number / 10)
intervals = st.tuples(tenths, tenths)


@pytest.mark.parametrize("row", CASES["parse_timestamps"], ids=lambda row: repr(row["in"]))
def test_paper_parser(row):
    assert parse_interval(row["in"], "paper") == (tuple(row["out"]) if row["out"] else None)


@pytest.mark.parametrize("row", CASES["interval_metrics"], ids=str)
def test_iou_table(row):
    assert interval_iou(row["pred"], row["gt"]) == pytest.approx(row["iou"], abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "[1,000, 2,000]",
        "1,000 to 2,000",
        "[1,000]",
        "1,234",
        "[1:23, 1:45]",
        "1:23 - 1:45",
        "-5, 10",
        "[-5, 10]",
        "[- 5, 10]",
        "5, -10",
        "[10, 20, 30]",
        "[0, 5], [30, 40]",
        "1e3, 2e3",
        "10,5 to 20,5",
        "12",
        "",
        None,
        f"0, {'9' * 400}",
    ],
)
def test_strict_refuses_what_can_be_misread(text):
    assert parse_interval(text) is None


@pytest.mark.parametrize(
    "text", ["[10.0, 20.5]", "(20.5,10)", "10 TO 20.5", "10-20.5 s", "from 10.00 and 20.50 seconds", "[10 — 20.5]"]
)
def test_strict_reads_the_rest(text):
    assert parse_interval(text) == parse_interval(text, "paper") == (10, 20.5)


def test_bracketed_whole_seconds_are_no_thousands():
    assert parse_interval("[10,200]") == (10, 200)


def test_answers_take_the_forms_of_datasets():
    for answer in ([0, 10], (0.0, 10.0), ["0", "10"], [10, 0], [[20, 30], [0, 10]]):
        assert grade_interval("[0, 5]", answer, "paper") == grade_interval("[0, 5]", answer, "strict") == 0.5
    assert grade_interval("[0, 5]", "[0, 10]", "strict") == 0.5


@pytest.mark.parametrize("answer", ["15.0", "10, 20"])
def test_a_text_is_no_interval_to_paper(answer):
    with pytest.raises(TypeError, match="is a text"):
        grade_interval("[1, 5]", answer, "paper")


@given(intervals, intervals)
def test_iou_properties(one, other):
    value = interval_iou(one, other)
    assert 0 <= value <= 1
    assert value == pytest.approx(interval_iou(one[::-1], other[::-1]))
    assert value == pytest.approx(interval_iou(other, one))
    if one[0] != one[1]:
        assert interval_iou(one, one) == 1


@given(intervals)
def test_both_profiles_read_the_form_the_prompt_asks_for(interval):
    text = f"[{interval[0]:.1f}, {interval[1]:.1f}]"
    assert parse_interval(text) == parse_interval(text, "paper") == tuple(sorted(interval))
