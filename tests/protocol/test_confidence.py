"""Confidence on the host: upstream's search row by row, and where ours agrees with it."""

import itertools
import json
import math
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from videoauto_jax.errors import UsageError
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.protocol.confidence import (
    answer_tokens,
    first_answer_confidence,
    first_boxed,
    normalize_answer,
    paper_span,
)

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "early_exit_cases.json").read_text())
TOKENIZERS = {
    name: PreTrainedTokenizerFast(tokenizer_file=str(DATA / f"{name}_tokenizer.json"))
    for name in ("tiny_q25like", "tiny_q3like")
}
LOG_PROBS = {
    "ramp": lambda t: -0.001 * (t + 1),
    "flat": lambda t: -0.01,
    "low_at_3": lambda t: -1.0 if t == 3 else -0.001,
    "low_at_4": lambda t: -1.0 if t == 4 else -0.001,
}
END = "<|im_end|>"
rows = pytest.mark.parametrize("row", CASES["rows"], ids=lambda row: f"{row['tokenizer']}-{row['note']}")


def tokens_of(row):
    tokenizer = TOKENIZERS[row["tokenizer"]]
    ids = [*tokenizer.encode(row["text"], add_special_tokens=False), tokenizer.convert_tokens_to_ids(END)]
    return tokenizer, ids


@rows
def test_paper_convention_is_upstreams(row):
    tokenizer, ids = tokens_of(row)
    log_probs = [LOG_PROBS[row["lp_spec"]](t) for t in range(len(ids))]
    confidence = first_answer_confidence(ids, log_probs, tokenizer, convention="paper", task=row["task"])
    # Upstream's log-probs come from a float32 log-softmax.
    assert confidence == pytest.approx(row["confidence"], abs=5e-6)
    span = paper_span(ids, tokenizer, row["task"])
    if row["confidence"] != -1:
        assert list(span) == row["span_tensor_ids(upstream)"]


def tokens_holding_the_answer(row, tokenizer, ids):
    """Tokens that overlap the normalised answer in the first box, by byte offsets (a box has `\\boxed{` before it)."""
    start = row["text"].index("\\boxed{" + row["first_box_content"]) + len("\\boxed{")
    start += row["first_box_content"].index(row["normalized"])
    low = len(row["text"][:start].encode())
    high = low + len(row["normalized"].encode())
    ends = list(itertools.accumulate(len(token) for token in tokenizer.convert_ids_to_tokens(ids)))
    return [i for i, end in enumerate(ends) if high > low and end > low and (ends[i - 1] if i else 0) < high]


MEASURABLE = [
    row
    for row in CASES["rows"]
    if row["confidence"] != -1 and not row["mvp_prefix_len"] and not row["text"].startswith("<think>")
]


def test_measured_is_the_answer_and_equals_paper_where_upstreams_span_is_the_answer():
    agreeing = 0
    for row in MEASURABLE:
        tokenizer, ids = tokens_of(row)
        expected = tokens_holding_the_answer(row, tokenizer, ids)
        assert answer_tokens(compile_automaton(tokenizer), ids) == expected, row["text"]
        if expected == list(range(*row["span_tensor_ids(upstream)"])):
            log_probs = [LOG_PROBS[row["lp_spec"]](t) for t in range(len(ids))]
            assert first_answer_confidence(ids, log_probs, tokenizer) == pytest.approx(row["confidence"], abs=5e-6)
            agreeing += 1
    assert agreeing >= 25  # the rest are shapes of answers at which upstream's search misses


@pytest.mark.parametrize("case", CASES["extract_first_boxed_content"], ids=lambda case: case["in"])
def test_first_boxed(case):
    assert first_boxed(case["in"]) == (tuple(case["out"]) if case["out"] else None)


@pytest.mark.parametrize("case", CASES["normalize_text"], ids=lambda case: repr(case["in"]))
def test_normalize_answer(case):
    assert normalize_answer(case["in"]) == case["out"]


@pytest.mark.parametrize(
    "text, measured",
    [
        ("\\boxed{(A) cat}", ["A"]),
        ("\\boxed{-3}", ["{-", "3"]),
        ("\\boxed{[4]}<", ["{[", "4", "]}<"]),
        ("\\boxed{A}", ["{A"]),
        ("\\boxed{}<think>r</think>\\boxed{A}", []),
        ("\\boxed{ Let's analyze it}", []),
        ("\\boxed{A<think>r</think>\\boxed{A}", []),
        ("<think>r</think>\\boxed{A}", []),
        ("A \\boxed{cat}", ["{cat"]),
        ("r</think>\\boxed{A}", []),
    ],
)
def test_measured_tokens(text, measured):
    tokenizer = TOKENIZERS["tiny_q25like"]
    ids = tokenizer.encode(text)
    indices = answer_tokens(compile_automaton(tokenizer), ids)
    assert tokenizer.convert_ids_to_tokens([ids[i] for i in indices]) == measured
    log_probs = [-0.1 * t for t in range(len(ids))]
    mean = sum(log_probs[i] for i in indices) / max(len(indices), 1)
    expected = math.exp(mean) if indices else -1
    assert first_answer_confidence(ids, log_probs, tokenizer) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, defined", [(" A}<think>", True), (" Let's analyze}", False), ("A", False), ("}", False)]
)
def test_measured_mvp_starts_inside_the_first_box(text, defined):
    tokenizer = TOKENIZERS["tiny_q3like"]
    ids = tokenizer.encode(text)
    confidence = first_answer_confidence(ids, [-0.5] + [-0.1] * (len(ids) - 1), tokenizer, task="mvp_mini_x")
    assert confidence == pytest.approx(math.exp(-0.5) if defined else -1)


def test_nothing_generated_is_undefined():
    for convention in ("measured", "paper"):
        assert first_answer_confidence([], [], TOKENIZERS["tiny_q3like"], convention) == -1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (([1, 2], [-0.1]), "2 token ids but 1 log-probs"),
        (([1], [-0.1], "upstream"), "unknown confidence convention"),
        (([1, -100], [-0.1, 0.0]), "-100"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    ids, log_probs, *convention = arguments
    with pytest.raises(UsageError, match=says):
        first_answer_confidence(ids, log_probs, TOKENIZERS["tiny_q3like"], *convention)
