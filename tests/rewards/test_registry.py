import math
import sys

import pytest

from videoauto_jax.errors import DataError
from videoauto_jax.rewards import grade, known_types, register_grader, registry, require_graders, score


def words(prediction, answer, profile):
    return float(len(prediction.split()) == answer)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(registry, "_GRADERS", dict(registry._GRADERS))


def test_a_registered_grader_is_used():
    register_grader("words", words, isolated=False)
    assert "words" in known_types()
    assert score("\\boxed{two words}<think>r</think>\\boxed{one}", 2, "words") == (1, 0, 1)


def test_what_another_process_cannot_import_is_refused():
    with pytest.raises(DataError, match="cannot be imported by another process.*isolated=False"):
        register_grader("lambda", lambda prediction, answer, profile: 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, "high", None])
def test_a_failing_grader_gives_zero_and_one_warning(value, caplog):
    register_grader(f"odd {value}", lambda prediction, answer, profile: value, isolated=False)
    assert [grade("x", "y", f"odd {value}") for _ in range(3)] == [0.0] * 3
    assert len(caplog.records) == 1 and "gave 0" in caplog.text


@pytest.mark.parametrize(
    "reference, message",
    [("no_such_module:f", "cannot be imported"), ("math:no_such", "cannot be imported"), ("math:pi", "not a function")],
)
@pytest.mark.parametrize("profile", ["paper", "strict"])
def test_bad_references_are_named(reference, message, profile):
    with pytest.raises(DataError, match=f"{reference}.*{message}"):
        score("", "", reference, profile=profile)


def test_who_asks_for_a_grader_that_does_not_exist_is_named():
    require_graders([("math", "a/1"), ("gqa", "a/2")])
    with pytest.raises(DataError, match=r"unknown problem type 'maths' \(a/2\). Did you mean 'math'"):
        require_graders([("math", "a/1"), ("maths", "a/2"), ("maths", "a/3")])


def test_a_broken_ground_truth_scores_zero():
    for answer in (None, "A", {"answer": "A"}, {"answer": None, "segment": [1, 2]}):
        assert grade("A <> [1, 2]", answer, "gqa") == 0
    for answer in (None, [], 5, {}):
        assert grade("[1, 2]", answer, "iou") == 0


def test_rewards_do_not_import_jax():
    import subprocess

    command = "import sys, videoauto_jax.rewards; sys.exit('jax' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
