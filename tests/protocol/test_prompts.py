import hashlib
import json
import pathlib

import pytest

from videoauto_jax.errors import UsageError
from videoauto_jax.protocol import (
    BOXED_SUFFIX,
    FALLBACK_ANSWER,
    FALLBACK_PREFIX,
    grounded_qa_prompt,
    grounding_prompt,
    system_prompt,
)

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "prompts.json").read_text())


@pytest.mark.parametrize(
    "mode, variant, case",
    [
        ("answer_twice", "train", "train_answer_twice"),
        ("answer_twice", "eval", "eval_qwen25"),
        ("answer_twice", "eval", "eval_qwen3"),
        ("answer_twice", "demo", "demo"),
        *(("direct", variant, "train_direct") for variant in ("train", "eval", "demo")),
        *(("cot", variant, "train_cot") for variant in ("train", "eval", "demo")),
    ],
)
def test_system_prompts_are_byte_exact(mode, variant, case):
    prompt = system_prompt(mode, variant)
    assert len(prompt) == CASES[case]["chars"]
    assert hashlib.sha256(prompt.encode()).hexdigest() == CASES[case]["sha256"]


def test_user_texts():
    assert BOXED_SUFFIX == "\nPut your final answer in \\boxed{}."
    assert FALLBACK_ANSWER.startswith(FALLBACK_PREFIX) and FALLBACK_ANSWER in system_prompt("answer_twice")
    assert grounding_prompt("a person runs") == (
        "Locate the start and end timestamps of the video segment corresponding to the description: a person runs "
        "Please provide the start and end timestamps (in seconds, precise to one decimal places) in the format "
        "\\boxed{[start, end]}."
    )
    assert grounded_qa_prompt("Q?", "A. x\nB. y") == (
        "Question: Q?\nOptions:\nA. x\nB. y\nPlease answer the question, and then provide the video segment that best "
        "supports your answer. The start and end timestamps must be in seconds with exactly one decimal place.\n"
        "Output format: \\boxed{answer <> [start, end]}. For example: \\boxed{A <> [20.3, 30.8]}."
    )


def test_baselines_are_asked_without_a_box():
    assert grounding_prompt("x", boxed=False).endswith("in the format [start, end].")
    question = grounded_qa_prompt("Q?", "A. x", boxed=False)
    assert question.endswith("\nOutput format: answer <> [start, end]. For example: A <> [20.3, 30.8]")


@pytest.mark.parametrize("arguments", [("answer-twice", "train"), ("direct", "test")])
def test_unknown_prompts_are_named(arguments):
    with pytest.raises(UsageError, match=r"unknown prompt .*Use one of: "):
        system_prompt(*arguments)
