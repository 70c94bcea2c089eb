"""Thresholds picked and reported on records whose curves are known."""

import itertools

import pytest

from videoauto_jax.errors import ConfigError, DataError
from videoauto_jax.eval.calibration import MOST, calibrate, pareto, pick, split
from videoauto_jax.eval.cost import fit_cost, wall_seconds
from videoauto_jax.eval.records import OTHERS
from videoauto_jax.eval.scoring import ALWAYS_THINK


def record(n, first, second, confidence, media=None):
    return {
        "id": f"s/{n}", "source": "s", "benchmark": None, "boxed": True, "row": {}, "tags": [], "media": media,
        "problem_type": "exact_match", "score_first": first, "score_second": second, "iou_first": None,
        "iou_second": None, "confidence": confidence, "tokens": 100, "first_tokens": 10, "finish_reason": "stop",
    }  # fmt: skip


def records(count=200):
    """Sure answers (0.9) are right at once, unsure ones (0.4) only after thinking."""
    return [record(n, float(n % 2 == 0), 1.0, 0.9 if n % 2 == 0 else 0.4, f"{n // 2}.mp4") for n in range(count)]


def test_no_video_is_in_both_parts():
    ours, rest = split(records(), 0.5, 0)
    videos = [{one["media"] for one in part} for part in (ours, rest)]
    assert not videos[0] & videos[1] and len(ours) + len(rest) == 200 and 60 < len(ours) < 140
    assert split(records(), 0.5, 0) == (ours, rest) != split(records(), 0.5, 1)


def test_the_picked_threshold_is_reported_on_the_rest():
    found = calibrate(records(), "paper")[OTHERS]
    assert found["threshold"] == pytest.approx(0.9) and found["reported"]["score"] == 100
    assert found["reported"]["tokens"] == 55 and found["reported"]["think_ratio"] == 0.5
    assert found["first"]["score"] == 50 and found["second"] == {"score": 100, "tokens": 100, "seconds": None}
    assert found["picked"]["n"] + found["reported"]["n"] == 200
    assert [point["tokens"] for point in found["pareto"]] == [10, 55]


def test_a_budget_of_tokens_is_kept():
    found = calibrate(records(), "paper", budget=50)[OTHERS]
    assert found["reported"]["tokens"] == 10 and found["threshold"] <= 0.4


def test_many_confidences_are_tried_at_their_quantiles():
    many = [record(n, float(n > 3000), 1.0, n / 6000, f"{n}.mp4") for n in range(6000)]
    found = calibrate(many, "paper")[OTHERS]
    assert len(found["curve"]) == MOST + 2 and found["picked"]["score"] >= 99.5
    assert abs(found["threshold"] - 0.5) < 0.02 and found["reported"]["score"] > 98


def test_pick_and_pareto():
    points = [{"threshold": t, "score": s, "tokens": k} for t, s, k in
              ((0.0, 50, 10), (0.5, 70, 40), (0.9, 69.6, 30), (ALWAYS_THINK, 68, 90))]  # fmt: skip
    assert [point["threshold"] for point in pareto(points)] == [0.0, 0.9, 0.5]
    assert pick(points, tolerance=0.0, budget=None)["threshold"] == 0.9  # 68 is the better fixed mode
    assert pick(points, tolerance=18.0, budget=None)["threshold"] == 0.0
    assert pick(points, tolerance=0.0, budget=35)["threshold"] == 0.9
    assert pick(points, tolerance=0.0, budget=5)["threshold"] == 0.0


def test_seconds_come_from_the_fit():
    lines = [{"id": f"s/{n}", "prompt_tokens": 100 * (n % 7), "tokens": 10 + n % 5} for n in range(200)]
    seconds = [0.001 * line["prompt_tokens"] + 0.02 * line["tokens"] for line in lines]
    ends = itertools.accumulate(seconds)
    timings = [line | {"seconds": s, "at": at, "first": False} for line, s, at in zip(lines, seconds, ends)]
    cost = fit_cost(timings)
    assert (cost.prompt, cost.answer) == (pytest.approx(0.001), pytest.approx(0.02)) and fit_cost(timings[:20]) is None
    loading = [{"prompt_tokens": 1, "tokens": 1, "seconds": 900.0, "at": 0.0, "first": True}]
    assert fit_cost(timings[:80] + loading + timings[80:]) == cost
    twice = fit_cost([line for line in timings for _ in range(2)])  # two processes at the same time
    assert (twice.prompt, twice.answer) == (pytest.approx(0.0005), pytest.approx(0.01))
    found = calibrate(records(), "paper", timings=timings)[OTHERS]
    ids = {one["id"] for one in split(records(), 0.5, 0)[1]}
    prompts = sum(line["prompt_tokens"] for line in lines if line["id"] in ids)
    assert found["reported"]["seconds"] == pytest.approx(0.001 * prompts + 0.02 * 55 * len(ids))


def test_seconds_of_processes_that_ran_at_once_count_once():
    spans = [(0, 4), (4, 6), (1, 5), (20, 21)]  # one process, then its next answer; another; a resumed run
    assert wall_seconds([{"at": end, "seconds": end - begin} for begin, end in spans]) == 7
    assert wall_seconds([]) == 0


def test_what_cannot_be_calibrated_is_told():
    with pytest.raises(DataError, match="1 samples cannot be split"):
        calibrate([record(0, 1.0, 1.0, 0.9)], "paper")
    with pytest.raises(ConfigError, match="tolerance=-1"):
        calibrate(records(), "paper", tolerance=-1.0)
