import json
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoauto_jax.errors import DataError, UsageError
from videoauto_jax.rewards import (
    FALLBACK_BONUS,
    Rewards,
    format_boxed,
    format_direct_boxed,
    score,
    single_box_accuracy,
    total,
)

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "reward_cases.json").read_text())

FALLBACK = "Let's analyze the problem step by step."


def twice(first, second, thought="r"):
    return f"\\boxed{{{first}}}<think>{thought}</think>\\boxed{{{second}}}"


def number(expected):
    """Upstream's crashes score nothing here."""
    return 0.0 if isinstance(expected, dict) else expected


@pytest.mark.parametrize("row", CASES["rows"], ids=lambda row: f"{row['id']} {row['note']}")
def test_paper_scores_as_upstream(row):
    completion, answer, kind = row["completion"], row["solution"], row["problem_type"]
    rewards = score(completion, answer, kind, profile="paper")
    scored = {
        "accuracy_boxed": single_box_accuracy(completion, answer, kind, profile="paper"),
        "format_boxed": format_boxed(completion, "paper"),
        "format_direct_boxed": format_direct_boxed(completion, "paper"),
        "accuracy_boxed1": rewards.accuracy_1,
        "accuracy_boxed2": rewards.accuracy_2,
        "format_twice_boxed": rewards.format,
    }
    assert scored == pytest.approx({name: number(value) for name, value in row["rewards"].items()}, abs=1e-9)
    if (expected := row["weighted_total_0.9_1.1_1"]) is not None:
        assert total(rewards) == pytest.approx(expected, abs=1e-9)


def test_rewards_never_leak_between_samples():
    for batch in CASES["batch_rows"]:
        samples = zip(batch["completions"], batch["solutions"], batch["problem_types"], strict=True)
        for completion, answer, kind in samples:
            rewards = score(completion, answer, kind, profile="paper")
            if kind == "free-form":
                assert rewards[:2] == (0.0, 0.0)
            elif kind == "exact_match":
                assert rewards.accuracy_1 == float(completion.startswith(f"\\boxed{{{answer}}}"))


STRICT_ONLY = {
    "full stop": (twice("A.", "(A)."), "A", "exact_match", (0, 0, 1), (1, 1, 1)),
    "option text": (twice("A. cat", "(A) cat"), "A", "exact_match", (0, 0, 1), (1, 1, 1)),
    "number as answer": (twice("42", "7"), 42, "math", (0, 0, 1), (1, 0, 1)),
    "number as choice": (twice("3", "4"), 3, "exact_match", (0, 0, 1), (1, 0, 1)),
    "bare LaTeX": (twice(r"\sqrt{2}", r"2\sqrt{3}"), r"\sqrt{2}", "math", (0, 0, 1), (1, 0, 1)),
    "LaTeX is not its first number": (twice("2", r"2\sqrt{3}"), "2", "math", (1, 1, 1), (1, 0, 1)),
    "nested braces": (twice(r"\frac{1}{\sqrt{2}}", "1"), r"$\frac{1}{\sqrt{2}}$", "math", (0, 0, 0), (1, 0, 1)),
    "empty thought": (twice("A", "A", ""), "A", "exact_match", (1, 1, 1), (1, 1, 0)),
    "blank thought": (twice("A", "A", " \n"), "A", "exact_match", (1, 1, 1), (1, 1, 0)),
    "truncated": (r"\boxed{A}<think>so", "A", "exact_match", (1, 1, 0), (1, 0, 0)),
    "lone box": (r"\boxed{A}", "A", "exact_match", (1, 1, 0), (1, 0, 0)),
    "thousands": (twice("[1,000, 2,000]", "[0, 1]"), [0, 1], "iou", (1, 1, 1), (0, 1, 1)),
    "clock times": (twice("[1:23, 1:45]", "[1, 23]"), [1, 23], "iou", (1, 1, 1), (0, 1, 1)),
    "negative": (twice("-5, 10", "[-5, 10]"), [5, 10], "iou", (1, 1, 1), (0, 0, 1)),
    "three numbers": (twice("[10, 20, 30]", "[10, 20]"), [10, 20], "iou", (1, 1, 1), (0, 1, 1)),
    "option text in gqa": (
        twice("A. cat <> [1, 2]", "A <> [1, 2]"),
        {"answer": "A", "segment": [[1, 2]]},
        "gqa",
        (1, 2, 1),
        (2, 2, 1),
    ),
}


@pytest.mark.parametrize("name", STRICT_ONLY)
def test_where_strict_differs(name):
    completion, answer, kind, paper, strict = STRICT_ONLY[name]
    assert score(completion, answer, kind, profile="paper") == paper
    assert score(completion, answer, kind) == strict


# Rows of the published table that score differently under strict; every other row must not.
DIFFERENT = {
    "letter with period (not a choice form)",
    "(A). form",
    "empty think",
    "unclosed think (truncated)",
    "math: dfrac",
    "math: gt dollars sqrt",
    "math: nested frac sqrt (2-level braces)",
    "math: choice letter under math",
    "math gt int type",
    "iou: negative",
    "iou: three numbers",
    "gqa: option text",
}


def test_strict_changes_nothing_else():
    rows = [row for row in CASES["rows"] if row["problem_type"] is not None]
    changed = {
        row["note"]
        for row in rows
        if score(row["completion"], row["solution"], row["problem_type"])
        != score(row["completion"], row["solution"], row["problem_type"], profile="paper")
    }
    assert changed == DIFFERENT


@pytest.mark.parametrize(
    "second, answer, kind, expected",
    [
        ("A", "A", "exact_match", 1 + FALLBACK_BONUS),
        ("B", "A", "exact_match", 0.0),
        ("[0, 7]", [0, 10], "iou", 0.7),
        ("[0, 7.1]", [0, 10], "iou", 0.71 + FALLBACK_BONUS),
        ("B <> [0, 8]", {"answer": "A", "segment": [0, 10]}, "gqa", 0.8 + FALLBACK_BONUS),
    ],
)
@pytest.mark.parametrize("profile", ["paper", "strict"])
def test_fallback_bonus(second, answer, kind, expected, profile):
    assert score(twice(FALLBACK, second), answer, kind, profile=profile).accuracy_2 == pytest.approx(expected)


@pytest.mark.parametrize(
    "first, second, expected",
    [("A", "A", 3.0), (FALLBACK, "A", 2.4), ("B", "A", 2.1), ("A", "B", 1.9), ("B", "B", 1.0)],
)
def test_totals_of_the_paper(first, second, expected):
    assert total(score(twice(first, second), "A", "exact_match")) == pytest.approx(expected)


def test_weights_must_match():
    assert total(Rewards(1.0, 1.0, 1.0), (0.5, 0.25, 0.0)) == 0.75
    with pytest.raises(ValueError):
        total(Rewards(1.0, 1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("profile", ["paper", "strict"])
def test_no_completion_earns_nothing(profile):
    assert score(None, "", "exact_match", profile=profile) == (0, 0, 0)
    assert single_box_accuracy(None, "", "exact_match", profile=profile) == 0


def test_forms_of_the_other_modes():
    assert format_boxed("<think>r</think> so \\boxed{A}.") == format_direct_boxed(" \\boxed{A} because") == 1
    assert format_boxed(" <think>r</think>\\boxed{A}") == format_direct_boxed("It is \\boxed{A}") == 0
    assert format_boxed("<think></think>\\boxed{A}", "paper") == 1 and format_boxed("<think></think>\\boxed{A}") == 0


def test_unknown_types_and_profiles():
    with pytest.raises(DataError, match="unknown problem type 'exact_mach'.*mean 'exact_match'.*gqa, iou, math"):
        score("", "A", "exact_mach")
    assert score(twice("A", "A"), "A", "exact_mach", profile="paper") == (0, 0, 1)
    with pytest.raises(UsageError, match="profile"):
        score("", "A", "exact_match", profile="loose")


@given(
    st.lists(st.sampled_from(["\\boxed{", "}", "<think>", "</think>", "A", ". ", "<>", "[1, 2]", FALLBACK, "9"])),
    st.sampled_from(["exact_match", "iou", "gqa"]),
    st.sampled_from(["A", 5, None, [1, 2], [[1, 2], [4, 9]], {"answer": "A", "segment": [1, 2]}, {}, [], "[1, 2]"]),
    st.sampled_from(["paper", "strict"]),
)
def test_rewards_stay_in_range(parts, kind, answer, profile):
    highest = 2.0 if kind == "gqa" else 1.0
    first, second, form = score("".join(parts), answer, kind, profile=profile)
    assert 0 <= first <= highest and 0 <= second <= highest + FALLBACK_BONUS and form in (0, 1)
    assert math.isfinite(first + second)
