import json
import pathlib

import pytest

from videoauto_jax.rewards import grade_choice, normalise, option_letter

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "reward_cases.json").read_text())


@pytest.mark.parametrize("row", CASES["mc_normalize"], ids=lambda row: repr(row["in"]))
def test_normaliser(row):
    assert normalise(row["in"]) == row["out"]


@pytest.mark.parametrize(
    "text", ["A.", "(A).", "[a]", "A)", "A:", "A. cat", "A.\ncat", "(A) a cat", "A) x, and so on", "Ａ．"]
)
def test_an_option_is_its_letter(text):
    assert option_letter(text) == "a"
    assert grade_choice(text, "A", "strict") == grade_choice(text, "(A).", "strict") == 1
    assert grade_choice(text, "B", "strict") == 0


@pytest.mark.parametrize(
    "text",
    ["A cat", "A, B", "A / B", "A. cat, B. dog", "(A) and (B)", "A. B", "A) or B)", "A.B.C.", "a.m.", "I-beam", ""],
)
def test_other_texts_are_not_options(text):
    assert grade_choice(text, "A", "strict") == grade_choice(text, "I", "strict") == 0


def test_letters_are_special_only_where_the_answer_is_one():
    assert grade_choice("A. cat", "cat", "strict") == 0
    assert grade_choice("a.  Cat", "A. cat", "strict") == 1
    assert grade_choice("True", "yes", "strict") == grade_choice("no.", "False", "strict") == 1
