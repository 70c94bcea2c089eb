"""One fate for the processes of a job: where one fails all end, soon and with one message.

Without it the others would wait for the failed one in the next program that spans them, for minutes or for ever.
"""

import functools
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax._src import distributed as runtime  # the key-value store of the coordinator has no public name

from videoauto_jax.distributed import initialize, is_main
from videoauto_jax.errors import VideoAutoError, explain

INTERRUPTED = 130, "interrupted; the same command resumes"
_KEY, _EVERY = "videoauto/end", 0.5


@contextmanager
def one_fate() -> Iterator[None]:
    """Joins the processes of the job; an error inside then ends all of them. Alone, errors are what they always are.

    The main process prints the one message, the failed one a traceback too if the error is not one a user can act on.
    Nothing is unwound: an unwinding process would wait for the others.
    """
    initialize()
    if jax.process_count() == 1:
        yield
        return
    _watch()
    try:
        yield
    except BaseException as error:
        _end(error)


def _end(error: BaseException) -> None:
    """Tells all processes to end, this one included; does not return."""
    status, line = INTERRUPTED if isinstance(error, KeyboardInterrupt) else explain(error)
    if not isinstance(error, VideoAutoError | OSError | KeyboardInterrupt):
        traceback.print_exception(error)
    try:
        runtime.global_state.client.key_value_set(_KEY, json.dumps([jax.process_index(), status, line]))
    except Exception:
        if not _message():  # nobody else has failed before: the coordinator is gone
            print(f"error: process {jax.process_index()}: {line}", file=sys.stderr, flush=True)
            os._exit(status)
    time.sleep(60)  # the watch ends this process
    os._exit(status)


@functools.cache
def _watch() -> None:
    """Begins to look for the message of a failed process; what the others would repeat is not logged any more."""
    if not is_main():
        logging.getLogger("videoauto_jax").setLevel(logging.ERROR)
    threading.Thread(target=_look, daemon=True).start()


def _look() -> None:
    while (message := _message()) is None:
        time.sleep(_EVERY)
    process, status, line = message
    if is_main():
        print(f"error: process {process}: {line}", file=sys.stderr, flush=True)
        time.sleep(4 * _EVERY)  # the coordinator lives in this process: the others have to see the message first
    os._exit(status)


def _message() -> tuple[int, int, str] | None:
    try:
        return tuple(json.loads(runtime.global_state.client.key_value_try_get(_KEY)))
    except Exception:  # not there yet, or shutting down
        return None
