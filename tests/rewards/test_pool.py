import subprocess
import sys
import threading
import time

import pytest

from videoauto_jax.errors import DataError, UsageError, VideoAutoError
from videoauto_jax.rewards import RewardPool, crew, score, worker

HOSTILE = "9^{9^{9^{9}}}"


def twice(answer):
    return f"\\boxed{{{answer}}}<think>r</think>\\boxed{{{answer}}}"


@pytest.fixture(scope="module")
def pool():
    with RewardPool(workers=2, timeout_s=1.0) as pool:
        yield pool


@pytest.fixture
def graders(tmp_path, monkeypatch):
    """A user's module, importable here and in the workers through `sys.path`."""
    (tmp_path / "my_graders.py").write_text(
        "import os, sys, time\n"
        "time.sleep(1.5)\n"
        "def length(prediction, answer, profile):\n"
        "    print('noise on stdout')\n"
        "    return float(len(prediction) == answer)\n"
        "def has_jax(prediction, answer, profile):\n"
        "    return float('jax' in sys.modules)\n"
        "def has_math_verify(prediction, answer, profile):\n"
        "    return float('math_verify' in sys.modules)\n"
        "def dies(prediction, answer, profile):\n"
        "    os._exit(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_hanging_expression_scores_zero_and_the_pool_goes_on(pool):
    before, start = pool.timeouts, time.monotonic()
    items = [(twice("1/2"), "0.5", "math"), (twice(HOSTILE), "1", "math"), (twice("3"), "3", "math")]
    assert pool.score_many(items) == [(1, 1, 1), (0, 0, 1), (1, 1, 1)]
    assert time.monotonic() - start < 8
    assert pool.timeouts == before + 1  # two equal answers, graded once
    assert pool.score_many(items[:1]) == [(1, 1, 1)]


@pytest.mark.parametrize("profile", ["paper", "strict"])
def test_the_pool_agrees_with_score(pool, profile):
    items = [
        (twice("A."), "A", "exact_match"),
        (twice(r"\sqrt{2}"), r"$\sqrt{2}$", "math"),
        (None, "1", "math"),
        (twice("[0, 5]"), [0, 10], "iou"),
        ("\\boxed{Let's analyze}<think>r</think>\\boxed{7}", "7", "math"),
        (twice("A <> [0, 5]"), {"answer": "A", "segment": [0, 10]}, "gqa"),
        ("\\boxed{7}", "7", "math"),
    ]
    assert pool.score_many(items, profile=profile) == [score(*item, profile=profile) for item in items]
    assert pool.score_many([]) == []


def test_cheap_types_start_no_process(monkeypatch):
    monkeypatch.setattr(worker, "start", None)
    with RewardPool(workers=1) as pool:
        assert pool.score_many([(twice("A"), "A", "exact_match"), (twice("[1, 2]"), [1, 2], "iou")])[0] == (1, 1, 1)


def test_users_graders(graders):
    with RewardPool(workers=2, timeout_s=1.0) as pool:
        # The import of the module takes longer than the limit of one answer.
        items = [(twice("abc"), 3, "my_graders:length"), (twice("abcd"), 3, "my_graders:length")]
        assert pool.score_many(items) == [(1, 1, 1), (0, 0, 1)]
        assert pool.grade_many([("", "", "my_graders:has_jax")]) == [0.0]
        # It is imported before a worker is ready: no answer's time pays for it.
        assert pool.grade_many([("", "", "my_graders:has_math_verify")]) == [1.0]
        assert pool.grade_many([("", "", "my_graders:dies"), ("5", "5", "math")]) == [0.0, 1.0]
        assert (pool.timeouts, pool.crashes) == (0, 1)


def test_a_worker_that_died_between_batches_is_replaced(pool):
    assert pool.grade_many([("1", "1", "math")]) == [1.0]
    for member in pool._crew._members:
        member.process.kill()
        member.process.wait()
    assert pool.grade_many([("2", "2", "math")]) == [1.0]


def test_threads_take_turns(pool):
    results = {}

    def work(number):
        results[number] = pool.grade_many([(str(number), "1", "math")])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: [0.0], 1: [1.0], 2: [0.0], 3: [0.0]}


def test_errors_are_clear(pool, monkeypatch):
    with pytest.raises(DataError, match="unknown problem type 'maths'"):
        pool.score_many([(twice("1"), "1", "maths")])
    with pytest.raises(UsageError, match="must be positive"):
        RewardPool(workers=0)
    monkeypatch.setattr(
        worker,
        "start",
        lambda: subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    )
    with pytest.raises(VideoAutoError, match="ended before it could grade"):
        crew.Crew(1, 1.0).run([worker.Task("1", "1", "math", "strict")] * 2)


def test_closing_ends_the_processes():
    pool = RewardPool(workers=1)
    pool.warm()
    (member,) = pool._crew._members
    pool.close()
    assert member.process.poll() is not None
