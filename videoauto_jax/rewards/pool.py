"""Grading many completions at once, each within a time limit."""

import pickle
import threading
import weakref
from collections.abc import Iterable

from videoauto_jax.errors import UsageError
from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards.crew import Crew
from videoauto_jax.rewards.registry import find_grader, grade
from videoauto_jax.rewards.scoring import ResponseForm, Rewards, answers_to_grade, combine
from videoauto_jax.rewards.worker import Task


class RewardPool:
    """Worker processes for graders that may hang; the others (`exact_match`, `iou`, `gqa`) run in the caller.

    A worker over its time limit is killed and replaced, and its answer gets 0. Equal answers of a batch are graded
    once. Workers start with the first batch that needs them, or with `warm`. A context manager; `close` may be left
    to the garbage collector. Several threads take turns.
    """

    def __init__(self, workers: int = 4, timeout_s: float = 10.0):
        """
        Args:
            workers: processes, about 100 MB each.
            timeout_s: seconds for one answer (a completion has two).

        Raises:
            UsageError: a number that is not positive.
        """
        if workers < 1 or timeout_s <= 0:
            raise UsageError(f"a reward pool of {workers} workers and {timeout_s} s", fix="Both must be positive.")
        self._crew = Crew(workers, timeout_s)
        self._lock = threading.Lock()
        weakref.finalize(self, self._crew.dismiss)

    @property
    def timeouts(self) -> int:
        """Answers that ran past the limit so far."""
        return self._crew.timeouts

    @property
    def crashes(self) -> int:
        """Answers whose worker died so far (out of memory, a segmentation fault)."""
        return self._crew.crashes

    def score_many(
        self,
        items: Iterable[tuple[str | None, object, str]],
        *,
        profile: Profile = "strict",
        form: ResponseForm = "answer_twice",
    ) -> list[Rewards]:
        """Rewards of `(completion, answer, problem_type)` triples, in order: `score` of each, within the limit.

        Raises:
            DataError, UsageError: as `score`.
            VideoAutoError: the workers do not start.
        """
        items = list(items)
        parts = [answers_to_grade(completion, kind, profile, form) for completion, _, kind in items]
        wanted = [(text, answer, kind) for (_, answer, kind), texts in zip(items, parts) for text in texts]
        grades = iter(self.grade_many(wanted, profile=profile))
        return [
            combine(completion, [next(grades) for _ in texts], profile, form)
            for (completion, _, _), texts in zip(items, parts)
        ]

    def grade_many(self, items: Iterable[tuple[str, object, str]], *, profile: Profile = "strict") -> list[float]:
        """Grades of `(prediction, answer, problem_type)` triples, the prediction being out of its box already.

        Raises:
            DataError: unknown problem type.
            VideoAutoError: the workers do not start.
        """
        results: list[float] = []
        slow: dict[bytes, tuple[Task, list[int]]] = {}
        for prediction, answer, kind in items:
            grader = find_grader(kind)
            if grader.isolated:
                task = Task(prediction, answer, grader.reference, profile)
                slow.setdefault(pickle.dumps(task), (task, []))[1].append(len(results))
                results.append(0.0)
            else:
                results.append(grade(prediction, answer, kind, profile=profile))
        with self._lock:
            values = self._crew.run([task for task, _ in slow.values()])
        for value, (_, places) in zip(values, slow.values()):
            for place in places:
                results[place] = value
        return results

    def warm(self) -> None:
        """Starts the workers and returns at once; they are ready about a second later."""
        with self._lock:
            self._crew.hire(self._crew.size)

    def close(self) -> None:
        """Ends the workers. A later batch starts new ones."""
        with self._lock:
            self._crew.dismiss()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
