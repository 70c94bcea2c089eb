import json
import pathlib

import numpy as np
import pytest

from videoauto_jax.rewards import grade_math
from videoauto_jax.rewards.math import parse_math

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "reward_cases.json").read_text())


@pytest.mark.parametrize("row", CASES["math_parse"], ids=lambda row: row["in"])
def test_delimited_text_is_parsed_as_upstream_parses_it(row):
    if row["out"]:
        found = parse_math(row["in"])
        assert [str(item) for item in found] == row["out"]
        assert [type(item).__name__ for item in found] == row["types"]


@pytest.mark.parametrize("row", CASES["math_verify_pairs"], ids=str)
def test_paper_pairs(row):
    assert grade_math(row["pred"], row["gold"], "paper") == row["verify_gold_pred"]
    assert grade_math(row["gold"], row["pred"], "paper") == row["verify_pred_gold"]


# math-verify 0.8.0, the paper's, told a percentage from its number; 0.9 does not.
@pytest.mark.parametrize(
    "prediction, answer, equal",
    [("50", r"$50\%$", 0), ("9", r"$9\%$", 0), ("5 percent", "$x=5$", 0), ("0.5", r"$50\%$", 1), ("50", "50%", 1)],
)
def test_paper_keeps_the_verdicts_of_its_version(prediction, answer, equal):
    assert grade_math(prediction, answer, "paper") == equal


@pytest.mark.parametrize(
    "prediction, answer",
    [
        (r"\sqrt{2}", r"$\sqrt{2}$"),
        (r"\dfrac{3}{4}", "0.75"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\pi", r"\pi"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"-\sqrt{2}.", r"-\sqrt{2}"),
        (r"1\frac{1}{2}", "1.5"),
        (r"x = \frac{1}{2}", "0.5"),
        (r"50\%", "0.5"),
        (r"12\text{ cm}", "12"),
        ("x^2+1", "1+x^2"),
        ("(1, 2)", "(1,2)"),
        ("(1,2,3)", "$(1,2,3)$"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("A.", "A"),
        ("cat", "Cat"),
        ("42", 42),
        ("0.0000001", 1e-7),
        ("7", np.int64(7)),
    ],
)
def test_strict_reads_bare_latex_and_numbers(prediction, answer):
    assert grade_math(prediction, answer, "strict") == 1


@pytest.mark.parametrize(
    "prediction, answer",
    [
        (r"2\sqrt{3}", "2"),
        ("(1, 2)", "(3, 2)"),
        (r"1\frac{1}{2}", "0.5"),
        ("act", "cat"),
        (r"\text{act}", r"\text{cat}"),
        ("B", "A"),
        ("", "5"),
        ("7", None),
    ],
)
def test_strict_is_no_laxer(prediction, answer):
    assert grade_math(prediction, answer, "strict") == 0
