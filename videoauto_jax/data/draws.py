"""What a worker does: take the sample at a position, encode it, stand another in for it if it is damaged."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.order import Plan
from videoauto_jax.errors import DataError

# One damaged sample in a row is bad luck; this many are a wrong path or a wrong set-up.
MAX_ATTEMPTS = 16


class Encoder(Protocol):
    """What turns a chat into arrays: picklable, and free of device work, as it runs in worker processes."""

    def encode(self, messages: list[dict]) -> Encoded: ...


@dataclasses.dataclass(frozen=True)
class Draw:
    """The prompt of one position, and the samples that were passed over for it as (index, reason)."""

    index: int
    encoded: Encoded
    passed_over: tuple[tuple[int, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws of the positions start, start + 1, …, stop - 1; a random-access source for grain.

    Attributes:
        messages: the chat of every sample.
        max_prompt_tokens: longer prompts count as damaged; None for no bound.
        deaths: how often each position has killed its worker process. Every death skips to other substitutes.
    """

    messages: Sequence[list[dict]]
    encoder: Encoder
    plan: Plan
    start: int
    stop: int
    max_prompt_tokens: int | None = None
    deaths: dict[int, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, item: int) -> Draw:
        position = self.start + item
        deaths = self.deaths.get(position, 0)
        passed_over = {self.plan.candidate(position, 0): "its worker process died"} if deaths else {}
        for attempt in range(deaths * MAX_ATTEMPTS, (deaths + 1) * MAX_ATTEMPTS):
            index = self.plan.candidate(position, attempt)
            if index in passed_over:
                continue
            try:
                return Draw(index, self._encode(index), tuple(passed_over.items()))
            except Exception as error:  # decoders raise anything; what is systematic ends at MAX_ATTEMPTS
                passed_over[index] = f"{type(error).__name__}: {error}"
        index, reason = next(reversed(passed_over.items()))
        raise DataError(
            f"{len(passed_over)} samples in a row could not be encoded",
            where=f"the last is number {index}: {reason}",
            fix="Check data_path and the media files.",
        )

    def _encode(self, index: int) -> Encoded:
        encoded = self.encoder.encode(self.messages[index])
        tokens, bound = len(encoded.token_ids), self.max_prompt_tokens
        if bound is not None and tokens > bound:
            raise DataError(f"the prompt has {tokens} tokens, max_prompt_tokens is {bound}")
        return encoded
