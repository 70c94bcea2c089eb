"""Every number of a small evaluation, worked out by hand."""

import numpy as np
import pytest

from videoauto_jax.data.annotations import Sample
from videoauto_jax.eval.cases import Case
from videoauto_jax.eval.records import make_records
from videoauto_jax.eval.scoring import (
    ALWAYS_THINK,
    reliability,
    score_modes,
    thinks,
    threshold_curve,
)
from videoauto_jax.rewards import RewardPool
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer

PAIR = r"\boxed{%s}<think>so</think>\boxed{%s}"
FALLBACK = "Let's analyze the problem step by step."
ROWS = [
    # tags, type, truth, text, confidence, tokens, tokens of the first answer
    (("perception", "colour"), "exact_match", "A", PAIR % ("A", "A"), 0.99, 20, 4),
    (("perception", "object"), "exact_match", "B", PAIR % ("C", "B"), 0.80, 22, 4),
    (("grounding", "when"), "iou", [2.0, 4.0], PAIR % ("[2.0, 4.0]", "[3.0, 5.0]"), 0.95, 40, 12),
    (("grounding", "grounded"), "gqa", {"answer": "A", "segment": [[0.0, 2.0]]},
     PAIR % ("B <> [0.0, 1.0]", "A <> [1.0, 2.0]"), 0.60, 50, 14),
    (("reasoning", "sum"), "math", "7", PAIR % ("3", "7"), 0.30, 90, 4),
    (("reasoning", "count"), "math", "2", PAIR % (FALLBACK, "2"), -1.0, 80, 10),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with RewardPool(1) as pool:
        yield pool


def records_of(rows, pool, profile="paper", finish="stop"):
    samples, answers = [], []
    for n, (tags, kind, truth, text, confidence, tokens, first) in enumerate(rows):
        messages = [{"role": "user", "content": [{"type": "text", "text": f"question {n}"}]}]
        samples.append(Case(Sample(messages, truth, kind, "set", f"set/{n + 1}", tags)))
        values = (np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), np.zeros(tokens, np.float32))
        answers.append(make_answer(text, *values, float(np.float32(confidence)), FINISH_REASONS.index(finish), first))
    return make_records(samples, answers, pool, profile=profile)


@pytest.fixture(scope="module")
def records(pool):
    return records_of(ROWS, pool)


def test_a_record_keeps_both_answers_and_their_grades(records):
    grounded = records[3]
    assert grounded["question"] == "question 3" and grounded["tags"] == ["grounding", "grounded"]
    assert (grounded["first_answer"], grounded["final_answer"]) == ("B <> [0.0, 1.0]", "A <> [1.0, 2.0]")
    assert (grounded["score_first"], grounded["score_second"]) == (0.5, 1.5)
    assert (grounded["iou_first"], grounded["iou_second"]) == (0.5, 0.5)
    assert (records[2]["iou_first"], records[2]["iou_second"]) == (1.0, pytest.approx(1 / 3))
    assert (records[5]["score_first"], records[5]["score_second"]) == (0.0, 1.0)  # no bonus for declining
    assert records[0]["iou_first"] is None and records[0]["media"] is None


def test_first_and_second_by_hand(records):
    scores = score_modes(records, 0.9)
    first, second = scores["first"], scores["second"]
    # Right at once: the colour and the located segment.
    assert first["all"] == {
        "accuracy": pytest.approx(2 / 6),
        "miou": pytest.approx((1 + 0.5) / 2),
        "tokens": pytest.approx((4 + 4 + 12 + 14 + 4 + 10) / 6),
        "think_ratio": 0.0,
        "n": 6,
    }
    # Right after thinking: all but the located segment, whose IoU falls to a third.
    assert second["all"]["accuracy"] == pytest.approx(5 / 6)
    assert second["all"]["miou"] == pytest.approx((1 / 3 + 0.5) / 2)
    assert second["all"]["tokens"] == pytest.approx((20 + 22 + 40 + 50 + 90 + 80) / 6)
    assert second["all"]["think_ratio"] == 1.0


def test_auto_takes_the_first_answer_from_the_threshold_on(records):
    auto = score_modes(records, 0.9)["auto"]
    assert auto["all"]["accuracy"] == 1.0  # two confident and right at once, the others right after thinking
    assert auto["all"]["think_ratio"] == pytest.approx(4 / 6)
    assert auto["all"]["tokens"] == pytest.approx((4 + 22 + 12 + 50 + 90 + 80) / 6)
    assert auto["all"]["miou"] == pytest.approx((1 + 0.5) / 2)


def test_slices_follow_the_tags(records):
    auto = score_modes(records, 0.9)["auto"]
    assert {name: scores["n"] for name, scores in auto.items()} == {
        "all": 6, "perception": 4, "reasoning": 2, "grounding": 2,
    }  # fmt: skip
    assert auto["perception"]["think_ratio"] == 0.5 and auto["reasoning"]["think_ratio"] == 1.0
    assert auto["reasoning"]["miou"] is None and auto["grounding"]["accuracy"] == 1.0


def test_an_empty_slice_has_no_means(records):
    scores = score_modes(records[:1], 0.9)["second"]["reasoning"]
    assert scores == {"accuracy": None, "miou": None, "tokens": None, "think_ratio": None, "n": 0}
    assert score_modes([], 0.9)["auto"]["all"]["n"] == 0


@pytest.mark.parametrize("threshold, thinking", [(0.95, False), (0.9500001, True), (0.0, False)])
def test_the_gate_compares_in_float32_as_on_the_device(records, threshold, thinking):
    assert thinks(records[2], threshold) is thinking
    alone = score_modes(records[2:3], threshold)["auto"]["all"]
    assert alone["think_ratio"] == float(thinking)


def test_no_confidence_always_thinks(records):
    assert thinks(records[5], 0.0)


def test_a_branch_that_the_gate_ended_counts_as_first(pool):
    rows = [(("reasoning",), "math", "7", r"\boxed{7}", 0.5, 4, 4)]
    exited = records_of(rows, pool, finish="exit")
    auto = score_modes(exited, 0.97, modes=("auto",))["auto"]["all"]
    assert (auto["accuracy"], auto["think_ratio"], auto["tokens"]) == (1.0, 0.0, 4.0)


def test_a_cut_off_thought_has_the_only_box_as_answer_in_paper_and_none_in_strict(pool):
    rows = [(("reasoning",), "exact_match", "A", r"\boxed{A}<think>and then", 0.2, 60, 4)]
    paper, strict = (score_modes(records_of(rows, pool, profile, "length"), 0.9) for profile in ("paper", "strict"))
    assert paper["second"]["all"]["accuracy"] == 1.0 and strict["second"]["all"]["accuracy"] == 0.0
    assert paper["first"]["all"]["accuracy"] == strict["first"]["all"]["accuracy"] == 1.0
    assert paper["auto"]["all"]["tokens"] == 60


def test_profiles_grade_differently(pool):
    rows = [(("perception",), "exact_match", "A", PAIR % ("A.", "A. cat"), 0.99, 9, 4)]
    assert score_modes(records_of(rows, pool, "paper"), 0.9)["second"]["all"]["accuracy"] == 0.0
    assert score_modes(records_of(rows, pool, "strict"), 0.9)["second"]["all"]["accuracy"] == 1.0


def test_the_curve_is_mode_auto_at_every_threshold(records):
    points = threshold_curve(records, [0.0, 0.5, 0.9, ALWAYS_THINK])
    # 0: only the item without confidence thinks; 0.5: the sum too; 0.9: all but two; then everything.
    assert [round(6 * point["think_ratio"]) for point in points] == [1, 2, 4, 6]
    assert [round(6 * point["accuracy"]) for point in points] == [3, 4, 6, 5]
    for point in points:
        auto = score_modes(records, point["threshold"])["auto"]["all"]
        assert {"threshold": point["threshold"], **auto} == point


def test_reliability_counts_right_first_answers_by_confidence(records):
    bins = reliability(records, bins=5)
    assert [one["n"] for one in bins] == [0, 1, 0, 1, 3]  # the item without confidence is left out
    assert bins[4] == {
        "low": 0.8, "high": 1.0, "n": 3, "right": 2.0,
        "confidence": pytest.approx((0.99 + 0.80 + 0.95) / 3), "accuracy": pytest.approx(2 / 3),
    }  # fmt: skip
    assert bins[0]["accuracy"] is None
