import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoauto_jax.errors import UsageError
from videoauto_jax.protocol import (
    begun_response,
    find_boxes,
    first_answer,
    is_fallback,
    is_well_formed,
    last_box_or_text,
    parse_response,
    second_answer,
)

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "reward_cases.json").read_text())
ROWS = [row for row in CASES["rows"] if row["completion"] is not None]

TURN = "<|im_start|>user\nBox it: \\boxed{<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "end, begun",
    [("", ""), (r"\boxed{", r"\boxed{"), (r"So \boxed{Answer: ", r"\boxed{Answer: "), (r"\boxed{A}", ""),
     (r"\boxed{A<think>", ""), (r"\boxed{A}<think>r</think>\boxed{", "")],
)  # fmt: skip
def test_a_prompt_may_end_inside_the_first_box(end, begun):
    assert begun_response(TURN + end) == begun


FRAGMENTS = ["\\boxed{", "{", "}", "\\", "<think>", "</think>", " ", "\n", "A", "Let's analyze", "\\frac{1}{2}"]
responses = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']} {row['note']}")
def test_paper_reads_as_upstream(row):
    text, expected = row["completion"], row["extracted"]
    assert first_answer(text, "paper") == expected["first"]
    assert second_answer(text, "paper") == expected["second"]
    assert last_box_or_text(text, "paper") == expected["last_anywhere_or_text"]
    assert is_well_formed(text, "paper") == bool(row["rewards"]["format_twice_boxed"])


@pytest.mark.parametrize(
    "text, paper, strict",
    [
        (r"\boxed{A}", ("A", "A"), ("A", "")),
        (r"\boxed{A}<think>cut off", ("A", "A"), ("A", "")),
        (r"\boxed{A}<think>cut off \boxed{B}", ("A", ""), ("A", "")),
        (r"\boxed{A}<think>r</think>", ("A", ""), ("A", "")),
        (r"r</think>\boxed{A}", ("A", "A"), ("", "A")),
        (r"<think>r</think>\boxed{A}", ("", "A"), ("", "A")),
        (r"\boxed{A}\boxed{A}<think>r</think>\boxed{B}", ("", "B"), ("", "B")),
        (r"\boxed{\frac{1}{\sqrt{2}}}<think>r</think>\boxed{{{{x}}}}", ("", ""), (r"\frac{1}{\sqrt{2}}", "{{{x}}}")),
        (r"\boxed{\boxed{A}}<think>r</think>\boxed{A", (r"\boxed{A}", ""), (r"\boxed{A}", "")),
        (r"\boxed{x{\boxed{A}}}<think>r</think>", ("A", ""), (r"x{\boxed{A}}", "")),
    ],
)
def test_answers_of_both_profiles(text, paper, strict):
    assert (first_answer(text, "paper"), second_answer(text, "paper")) == paper
    assert (first_answer(text), second_answer(text)) == strict


@pytest.mark.parametrize(
    "text, paper, strict",
    [
        ("\\boxed{A}<think>r</think>\\boxed{B}", True, True),
        ("\n \\boxed{}\n<think>\nr\n</think> \\boxed{B}\n", True, True),
        (r"\boxed{A}<think>a box \boxed{C} inside</think>\boxed{B}", True, True),
        (r"\boxed{A}<think></think>\boxed{B}", True, False),
        ("\\boxed{A}<think> \n</think>\\boxed{B}", True, False),
        (r"\boxed{{{A}}}<think>r</think>\boxed{B}", False, True),
        (r"\boxed{A}<think>r</think>\boxed{B}.", False, False),
        (r"\boxed{A}\boxed{A}<think>r</think>\boxed{B}", False, False),
        (r"\boxed{A}</think>r<think>\boxed{B}", False, False),
        (r"\boxed{A}<think>r <think> r</think>\boxed{B}", False, False),
        (r"\boxed{A}}<think>r</think>\boxed{B}", False, False),
        (r"\boxed {A}<think>r</think>\boxed{B}", False, False),
    ],
)
def test_form_of_both_profiles(text, paper, strict):
    assert (is_well_formed(text, "paper"), is_well_formed(text)) == (paper, strict)


def test_fallback_is_a_literal_prefix():
    assert is_fallback("\n Let's analyze anything")
    assert not any(map(is_fallback, ["Let’s analyze", "let's analyze", "Lets analyze", "So, Let's analyze"]))


def test_parsed_response():
    response = parse_response("\\boxed{Let's analyze}<think> why </think>\\boxed{B}")
    assert (response.first, response.thought, response.second) == ("Let's analyze", " why ", "B")
    assert response.closed and response.fallback and response.well_formed
    truncated = parse_response("\\boxed{A}<think>why")
    assert (truncated.thought, truncated.closed, truncated.second) == ("why", False, "")
    assert parse_response("\\boxed{A}").thought is None


@given(responses)
def test_strict_boxes_are_balanced_and_never_both_answers(text):
    for box in find_boxes(text):
        assert text[box.start : box.end] == f"\\boxed{{{box.content}}}"
        assert box.content.count("{") == box.content.count("}")
    if second_answer(text):
        assert len(find_boxes(text)) > bool(first_answer(text))


@given(responses)
def test_whatever_is_well_formed_has_its_parts(text):
    response = parse_response(text)
    if response.well_formed:
        assert response.closed and response.thought.strip()
        rebuilt = f"\\boxed{{{response.first}}}<think>{response.thought}</think>\\boxed{{{response.second}}}"
        assert "".join(rebuilt.split()) == "".join(text.split())


def test_unclosed_boxes_take_linear_time():
    assert find_boxes("\\boxed{" * 20_000) == []


def test_unknown_profile():
    with pytest.raises(UsageError, match="'lenient'.*paper, strict"):
        first_answer("", "lenient")
