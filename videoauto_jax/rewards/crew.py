"""Worker processes and who does what: tasks go to whoever is free, and whoever takes too long is replaced."""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from subprocess import Popen

from videoauto_jax.errors import VideoAutoError
from videoauto_jax.rewards import worker
from videoauto_jax.rewards.worker import Ready, Task

_START_S = 120.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Member:
    """One worker. It is starting up while it knows no grader, then free while `task` is None."""

    process: Popen = dataclasses.field(default_factory=lambda: worker.start())
    graders: set[str] = dataclasses.field(default_factory=set)
    task: int | None = None
    deadline: float = dataclasses.field(default_factory=lambda: time.monotonic() + _START_S)

    @property
    def ready(self) -> bool:
        return bool(self.graders)

    @property
    def free(self) -> bool:
        return self.ready and self.task is None


class Crew:
    """Up to `size` workers that give each task at most `timeout_s` seconds. Not for several threads at once.

    Attributes:
        timeouts: tasks that ran past the limit so far.
        crashes: tasks whose worker died.
    """

    def __init__(self, size: int, timeout_s: float):
        self.size, self.timeout_s = size, timeout_s
        self.timeouts = self.crashes = 0
        self._members: list[_Member] = []

    def hire(self, count: int) -> None:
        """Starts workers until there are `count`, at most `size`, without waiting for them."""
        while len(self._members) < min(count, self.size):
            self._members.append(_Member())

    def dismiss(self) -> None:
        """Kills all workers."""
        worker.stop([member.process for member in self._members])
        self._members.clear()

    def run(self, tasks: Sequence[Task]) -> list[float]:
        """Grades of the tasks, in order; 0 for a task that timed out or whose worker died.

        Raises:
            VideoAutoError: workers do not start.
        """
        values, waiting, left = [0.0] * len(tasks), deque(range(len(tasks))), len(tasks)
        self.hire(len(tasks))
        try:
            while left:
                self._hand_out(tasks, waiting)
                for member, has_reply in self._wait():
                    task = member.task
                    grade = self._receive(member) if has_reply else self._give_up(member, tasks)
                    if grade is not None:
                        values[task] = grade
                        left -= 1
        except BaseException:
            # Replies still on their way would be taken for those of the next batch.
            self.dismiss()
            raise
        return values

    def _hand_out(self, tasks: Sequence[Task], waiting: deque[int]) -> None:
        for member in self._members:
            if not member.free or not waiting:
                continue
            task = tasks[waiting[0]]
            try:
                worker.send(member.process.stdin, (task, self.timeout_s))
            except BrokenPipeError:  # it died between two batches
                self._replace(member)
                continue
            # The import of a user's grader is not part of the first answer's time.
            limit = self.timeout_s if task.reference in member.graders else _START_S
            member.task, member.deadline = waiting.popleft(), time.monotonic() + limit

    def _wait(self) -> list[tuple[_Member, bool]]:
        """Workers that have something to say, or (False) should have by now."""
        busy = [member for member in self._members if not member.free]
        patience = max(0.0, min(member.deadline for member in busy) - time.monotonic())
        speaking = wait([member.process.stdout for member in busy], patience)
        now = time.monotonic()
        return [
            (member, member.process.stdout in speaking)
            for member in busy
            if member.process.stdout in speaking or member.deadline <= now
        ]

    def _receive(self, member: _Member) -> float | None:
        """The grade, or None if the worker only reports that a grader is imported."""
        try:
            message = worker.receive(member.process.stdout.raw)
        except EOFError:
            if not member.ready:
                raise _not_started("ended") from None
            self.crashes += 1
            self._replace(member)
            return 0.0
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Ready):
            member.graders.add(message.grader)
            member.deadline = time.monotonic() + self.timeout_s
            return None
        member.task = None
        return message

    def _give_up(self, member: _Member, tasks: Sequence[Task]) -> float:
        if not member.ready:
            raise _not_started(f"was not ready after {_START_S:.0f} s")
        self.timeouts += 1
        prediction = tasks[member.task].prediction
        _log.warning("graded 0 after %g s: %.80r", self.timeout_s, prediction)
        self._replace(member)
        return 0.0

    def _replace(self, member: _Member) -> None:
        worker.stop([member.process])
        self._members[self._members.index(member)] = _Member()


def _not_started(how: str) -> VideoAutoError:
    return VideoAutoError(f"a reward worker {how} before it could grade", fix="Its own message stands above this one.")
