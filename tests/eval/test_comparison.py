"""Differences of two evaluations and their intervals."""

import numpy as np
import pytest

from videoauto_jax.errors import ConfigError, DataError
from videoauto_jax.eval.comparison import compare


def charades(n, second, video=None):
    return {
        "id": f"charades/{n}", "source": "charades", "benchmark": "charades", "boxed": True,
        "row": {"timestamp": [0.0, 10.0]}, "tags": [], "media": video or f"{n}.mp4", "problem_type": "iou",
        "text": rf"\boxed{{[0, {second}]}}", "confidence": 0.9, "tokens": 40, "first_tokens": 10,
        "finish_reason": "stop",
    }  # fmt: skip


def pairs(right):
    """MVP pairs of which the first `right` are right in both halves."""
    made = []
    for n in range(20):
        for half in range(2):
            answer = "A" if n < right or half == 0 else "B"
            made.append({
                "id": f"mvp_mini/{n}/{half}", "source": "mvp_mini", "benchmark": "mvp_mini", "boxed": True,
                "row": {"candidates": ["x", "y"], "answer": "x", "video_id": f"v{n}_{half}"}, "tags": [],
                "media": f"v{n}_{half}.mp4", "problem_type": "exact_match", "text": rf"\boxed{{Answer: {answer}}}",
                "confidence": 0.9, "tokens": 5, "first_tokens": 5, "finish_reason": "stop",
            })  # fmt: skip
    return made


def sides(a, b, mode="second"):
    return (a, mode, 0.5), (b, mode, 0.5)


def test_a_constant_shift_has_no_spread():
    a, b = [charades(n, 4.0) for n in range(30)], [charades(n, 6.0) for n in range(30)]
    found = compare(*sides(a, b), "paper", resamples=50)["charades"]
    assert (found["a"], found["b"]) == (pytest.approx(40), pytest.approx(60))
    assert (found["low"], found["difference"], found["high"]) == pytest.approx((20, 20, 20))
    assert found["tokens_a"] == 40 and compare(*sides(a, b, "first"), "paper")["charades"]["tokens_a"] == 10


def test_the_interval_is_that_of_a_paired_mean():
    rng = np.random.default_rng(1)
    shifts = rng.normal(1.0, 1.0, 200)
    a = [charades(n, 4.0) for n in range(200)]
    b = [charades(n, round(float(4.0 + shift), 3)) for n, shift in enumerate(np.clip(shifts, -3, 5))]
    found = compare(*sides(a, b), "paper", resamples=2000)["charades"]
    half = 1.96 * 10 * np.std(shifts) / np.sqrt(200)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.1)


def test_questions_about_one_video_are_resampled_together():
    a = [charades(n, 4.0, f"{n % 2}.mp4") for n in range(40)]
    b = [charades(n, 4.0 if n % 2 else 8.0, f"{n % 2}.mp4") for n in range(40)]
    found = compare(*sides(a, b), "paper", resamples=200)["charades"]
    assert found["videos"] == 2 and (found["low"], found["high"]) == pytest.approx((0, 40))


def test_pairs_stay_pairs():
    found = compare(*sides(pairs(5), pairs(15)), "paper", resamples=300)["mvp_mini"]
    assert (found["a"], found["b"], found["difference"]) == (25, 75, 50) and found["videos"] == 20
    assert 20 < found["low"] < 50 < found["high"] < 80


def test_only_common_samples_count_and_there_have_to_be_some():
    a, b = [charades(n, 4.0) for n in range(5)], [charades(n, 4.0) for n in range(3, 9)]
    assert compare(*sides(a, b), "paper", resamples=5)["charades"]["n"] == 2
    with pytest.raises(DataError, match="no sample in common"):
        compare(*sides(a[:1], b), "paper")


def test_other_samples_under_the_same_ids_are_refused():
    a, b = ([charades(n, 4.0) | {"truth": [0.0, 10.0]} for n in range(3)] for _ in range(2))
    b[1] |= {"question": "asked plainly", "media": "elsewhere/1.MP4"}
    assert compare(*sides(a, b), "paper", resamples=0)["charades"]["n"] == 3
    for changed in ({"truth": [0.0, 9.0]}, {"media": "8.mp4"}):
        with pytest.raises(DataError, match="charades/2 is another sample in each"):
            compare(*sides(a, [*b[:2], b[2] | changed]), "paper")
    with pytest.raises(ConfigError, match="seed=-1"):
        compare(*sides(a, b), "paper", seed=-1)
