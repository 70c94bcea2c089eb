"""What a branch becomes on the host."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from videoauto_jax.protocol.grammar import parse_response

Mode = Literal["first", "second", "auto", "record"]
FINISH_REASONS = ("running", "stop", "exit", "length", "nan")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One branch.

    Attributes:
        text: the response without its stop token, and with the box that the prompt begins it with, if it does.
        token_ids: its tokens, the stop token included.
        logprobs: log-probabilities of the tokens under the model (temperature 1).
        sampling_logprobs: the same under the distribution they were drawn from.
        confidence: exp(mean log p) of the first answer's tokens; -1 where there is none or it is the fallback.
        first_answer: content of the first box, "" if there is none.
        reasoning: the thought, "" if there is none.
        final_answer: content of the second box, "" if there is none.
        answer: the one that counts: the first if the gate ended the branch, else the second, else what there is.
        exited: the gate ended the branch after its first answer.
        finish_reason: stop, exit, length, nan (the next logits were not numbers), or refused (see `error`).
        first_tokens: tokens up to and including the one that closed the first answer; all of them if none did.
        seconds: from the prompt's prefill until the last branch of its group had ended.
        error: why there is no answer, "" if there is one.
    """

    text: str
    token_ids: Int[ndarray, "R"]
    logprobs: Float[ndarray, "R"]
    sampling_logprobs: Float[ndarray, "R"]
    confidence: float
    first_answer: str
    reasoning: str
    final_answer: str
    answer: str
    exited: bool
    finish_reason: str
    first_tokens: int
    seconds: float
    error: str = ""


def make_answer(
    text: str,
    token_ids: ndarray,
    logprobs: ndarray,
    sampling_logprobs: ndarray,
    confidence: float,
    finish: int,
    first_tokens: int,
    seconds: float = 0.0,
) -> Answer:
    """Parses a finished branch."""
    response = parse_response(text)
    exited = FINISH_REASONS[finish] == "exit"
    answer = response.first if exited else response.second or response.first
    return Answer(
        text=text,
        token_ids=token_ids,
        logprobs=logprobs,
        sampling_logprobs=sampling_logprobs,
        confidence=confidence,
        first_answer=response.first,
        reasoning=response.thought or "",
        final_answer=response.second,
        answer=answer,
        exited=exited,
        finish_reason=FINISH_REASONS[finish],
        first_tokens=first_tokens,
        seconds=seconds,
    )


def refusal(reason: str) -> Answer:
    """What stands for the answers to a prompt that cannot be run."""
    none, ids = np.zeros(0, np.float32), np.zeros(0, np.int32)
    return Answer("", ids, none, none, -1.0, "", "", "", "", False, "refused", 0, 0.0, reason)
