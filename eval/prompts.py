"""Prompts of an evaluation, decoded and encoded by threads ahead of their use."""

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from videoauto_jax.data.draws import Encoder
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.errors import ConfigError, ModelError
from videoauto_jax.eval.cases import Case


class Prompts:
    """The prompts of cases, in order and without those that have none.

    Iterating takes them one by one, while threads encode the next ones.

    Attributes:
        taken: the cases whose prompts were handed out, by their number.
        damaged: cases without a prompt, and why.
        waited: seconds that whoever iterates has waited for a prompt.
        lengths: tokens of the prompts handed out.
    """

    def __init__(self, cases: Sequence[Case], encoder: Encoder, *, workers: int = 4, ahead: int = 8):
        """
        Args:
            cases: what is asked, cases about one video side by side.
            workers: threads.
            ahead: prompts kept ready.
        """
        self.taken: list[Case] = []
        self.damaged: list[tuple[Case, str]] = []
        self.waited = 0.0
        self.lengths: list[int] = []
        self._cases, self._encoder, self._ahead = iter(cases), encoder, max(1, ahead)
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="encode")

    def __iter__(self) -> Iterator[Encoded]:
        """
        Raises:
            ModelError, ConfigError: what is wrong with every case alike.
        """
        waiting: deque[tuple[Case, Future]] = deque()
        while True:
            for case in itertools.islice(self._cases, self._ahead - len(waiting)):
                waiting.append((case, self._threads.submit(_encode, self._encoder, case)))
            if not waiting:
                return
            case, future = waiting.popleft()
            started = time.perf_counter()
            prompt = future.result()
            self.waited += time.perf_counter() - started
            if isinstance(prompt, str):
                self.damaged.append((case, prompt))
                continue
            self.taken.append(case)
            self.lengths.append(len(prompt.token_ids))
            yield prompt

    def close(self) -> None:
        """Ends the threads; what they have not begun is left undone."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _encode(encoder: Encoder, case: Case) -> Encoded | str:
    try:
        return encoder.encode(case.sample.messages)
    except (ModelError, ConfigError):
        raise
    except Exception as error:  # decoders raise anything; one damaged file must not end an evaluation
        return f"{type(error).__name__}: {error}"
