"""A process that grades what its parent sends through pipes, one answer at a time.

A plain child process rather than `multiprocessing`: that would run the user's main module again, and with it import
jax. This module and everything it imports stay free of jax.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from videoauto_jax.errors import DataError
from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards.registry import find_grader, grade

# The parent's import path comes first, so that the child finds what the parent can import.
_START = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import {0}; {0}.serve()"

# Bytes; bounds what `10^{10^{10}}` may allocate before its time is up.
_MEMORY = 4 << 30


class Ready(NamedTuple):
    """A worker's message that it has imported a grader; the first of them ends its start."""

    grader: str


class Task(NamedTuple):
    """One answer to grade; `reference` finds the grader in any process."""

    prediction: str
    answer: object
    reference: str
    profile: Profile


def start() -> subprocess.Popen:
    """Starts a worker; it says `Ready` once it can grade `math`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START.format(__name__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with contextlib.suppress(BrokenPipeError):
        pickle.dump(sys.path, process.stdin)
        process.stdin.flush()
    return process


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Kills workers and waits for them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def send(pipe: BinaryIO, message: Any) -> None:
    """Writes one message.

    Raises:
        BrokenPipeError: the other side is gone.
    """
    data = pickle.dumps(message)
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Reads one message and not a byte more, so that whoever waits for an unbuffered pipe misses none.

    Raises:
        EOFError: the other side is gone.
    """
    return pickle.loads(_read(pipe, int.from_bytes(_read(pipe, 8), "big")))


def _read(pipe: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = pipe.read(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def serve() -> None:
    """The worker's loop: grades `(task, seconds)` until its input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    # Whatever a grader prints must not mix with the replies.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Texts that differ: equal ones are right before math-verify and sympy are imported, which the first task would pay.
    grade("x^2+1/2", r"\frac{1}{2}+x^2", "math")
    send(replies, Ready("math"))
    imported = {"math"}
    while True:
        try:
            task, seconds = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if task.reference not in imported:
                find_grader(task.reference)
                imported.add(task.reference)
                send(replies, Ready(task.reference))
            send(replies, _grade(task, seconds))
        except DataError as error:
            send(replies, error)


def _grade(task: Task, seconds: float) -> float:
    _limit_life(2 * seconds)
    _limit_memory(_MEMORY if task.reference == "math" else None)
    value = grade(task.prediction, task.answer, task.reference, profile=task.profile)
    _limit_life(0.0)
    return value


def _limit_life(seconds: float) -> None:
    """Lets the kernel end this process, should the parent be gone when a grader hangs. 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(limit: int | None) -> None:
    """Bounds the address space; None lifts the bound, for a user's grader may bring libraries that map much."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard if limit is None or hard != resource.RLIM_INFINITY and hard < limit else limit
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
