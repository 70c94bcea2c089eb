"""The texts a checkpoint was trained on, byte for byte (the paper's training, evaluation and demo code).

Three answer-twice system prompts exist in the wild: `train`; `eval`, which ends with a newline; and `demo`, which lacks
the advice to repeat or correct the first answer. Released checkpoints were trained on the first and scored with the
second, so both are kept.
"""

from videoauto_jax.errors import UsageError

MODES = ("answer_twice", "direct", "cot")
VARIANTS = ("train", "eval", "demo")

# The answer a model gives instead of guessing; anything that starts with the prefix counts as this answer.
FALLBACK_PREFIX = "Let's analyze"
FALLBACK_ANSWER = "Let's analyze the problem step by step."

# Follows every question whose answer is not a time interval.
BOXED_SUFFIX = "\nPut your final answer in \\boxed{}."

_HELPFUL = "You are a helpful assistant."
_REPEAT_OR_CORRECT = " If you believe the previous answer was correct, repeat it; otherwise, correct it."
_ANSWER_TWICE = (
    f"{_HELPFUL}\n"
    "FIRST: Output your initial answer inside the first \\boxed{...} without any analysis or explanations. "
    f"If you cannot determine the answer without reasoning, output \\boxed{{{FALLBACK_ANSWER}}} instead.\n"
    "THEN: Think through the reasoning as an internal monologue enclosed within <think>...</think>.\n"
    f"AT LAST: Output the final answer again inside \\boxed{{...}}.{_REPEAT_OR_CORRECT}\n"
    "Output format: \\boxed{...}<think>...</think>\\boxed{...}"
)
_COT = (
    f"{_HELPFUL} FIRST, think through the reasoning process as an internal monologue, and THEN provide the final "
    "answer. The reasoning process MUST be enclosed within <think> </think> tags, and the final answer MUST be wrapped "
    "in \\boxed{}."
)


def system_prompt(mode: str = "answer_twice", variant: str = "train") -> str:
    """The system message of a mode; `variant` changes only the answer-twice text.

    Raises:
        UsageError: unknown mode or variant.
    """
    _check("prompt mode", mode, MODES)
    _check("prompt variant", variant, VARIANTS)
    if mode == "direct":
        return _HELPFUL
    if mode == "cot":
        return _COT
    if variant == "demo":
        return _ANSWER_TWICE.replace(_REPEAT_OR_CORRECT, "")
    return _ANSWER_TWICE + ("\n" if variant == "eval" else "")


def grounding_prompt(description: str, *, boxed: bool = True) -> str:
    """The question of temporal grounding. `boxed=False` asks for a bare interval, as baselines are asked."""
    return (
        "Locate the start and end timestamps of the video segment corresponding to the description: "
        f"{description} Please provide the start and end timestamps (in seconds, precise to one decimal places) "
        f"in the format {_boxed('[start, end]', boxed)}."
    )


def grounded_qa_prompt(question: str, options: str, *, boxed: bool = True) -> str:
    """A grounded multiple-choice question; `options` holds one lettered option a line (`"A. red\\nB. blue"`)."""
    return (
        f"Question: {question}\nOptions:\n{options}\n"
        "Please answer the question, and then provide the video segment that best supports your answer. "
        "The start and end timestamps must be in seconds with exactly one decimal place.\n"
        f"Output format: {_boxed('answer <> [start, end]', boxed)}. "
        f"For example: {_boxed('A <> [20.3, 30.8]', boxed)}{'.' if boxed else ''}"
    )


def _boxed(form: str, boxed: bool) -> str:
    return f"\\boxed{{{form}}}" if boxed else form


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}", fix=f"Use one of: {', '.join(known)}.")
