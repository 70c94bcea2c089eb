"""`videoauto ask`: one video or image, one question, in the terminal."""

import dataclasses
from pathlib import Path
from typing import Literal

import rich
from rich.console import Console
from rich.text import Text

from videoauto_jax.data.annotations import ImageBudget, VideoBudget
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor, load_processor
from videoauto_jax.errors import MediaError, UsageError
from videoauto_jax.models.config import resolve_folder
from videoauto_jax.models.hf import load_model
from videoauto_jax.protocol.grammar import is_fallback
from videoauto_jax.protocol.prompts import BOXED_SUFFIX, system_prompt
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.config import checkpoint_defaults
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

_UNFINISHED = {"length": " (cut off)", "nan": " (cut off: the model's next logits are not numbers)"}
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """One question.

    Attributes:
        model: HF folder.
        video: video or image file; null asks about nothing but the text.
        question: the question. The request for a boxed answer is appended unless it holds one.
        mode: answer at once (`first`), after thinking (`second`), or think only where it pays (`auto`).
        threshold: least confidence at which `auto` answers at once.
        max_new_tokens: most tokens of the answer.
        temperature: 0 is greedy.
        repetition_penalty: on tokens of the prompt and the answer; null: what the checkpoint asks for.
        seed: of sampling.
        prompt_variant: the answer-twice system prompt: as in training, in the released checkpoints' evaluation, or in
            their demo.
        video_budget: frames and pixels of a video.
        image_budget: pixels of an image.
        dtype: dtype of weights, activations and matrix products.
    """

    model: str
    video: str | None = None
    question: str | None = None
    mode: Literal["first", "second", "auto"] = "auto"
    threshold: float = 0.97
    max_new_tokens: int = 2048
    temperature: float = 0.0
    repetition_penalty: float | None = None
    seed: int = 0
    prompt_variant: Literal["train", "eval", "demo"] = "train"
    video_budget: VideoBudget = VideoBudget()
    image_budget: ImageBudget = ImageBudget()
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


CONFIG = AskConfig
HELP = "Answers one question about a video or an image."
POSITIONAL = ("video", "question")


def run(config: AskConfig, *, force: bool) -> None:
    """Prints the response as it is written, then both answers, the confidence and the thought."""
    del force  # nothing is written
    console = rich.get_console()
    messages = conversation(config)
    processor = load_processor(config.model)
    prompt = processor.encode(messages)  # before the weights: a broken video is told at once
    answer = _answer(config, processor, prompt, console)
    show(answer, config, console)


def conversation(config: AskConfig) -> list[dict]:
    """The chat of a question.

    Raises:
        UsageError: there is no question.
        MediaError: there is no such file.
    """
    if not (config.question or "").strip():
        raise UsageError("there is no question", fix='For example: videoauto ask clip.mp4 "What happens?" model=FOLDER')
    text = config.question if "\\boxed" in config.question else config.question + BOXED_SUFFIX
    content = [*_visual(config), {"type": "text", "text": text}]
    system = system_prompt("answer_twice", variant=config.prompt_variant)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def show(answer: Answer, config: AskConfig, console: Console) -> None:
    """Prints an answer part by part."""
    confidence = f"{answer.confidence:.3f}" if answer.confidence >= 0 else "none"
    if config.mode == "auto":
        confidence += f" ({'at least' if answer.exited else 'below'} {config.threshold:g}, "
        confidence += "so no thinking)" if answer.exited else "so it thought)"
    first = answer.first_answer or "(none)"
    parts = {
        "first answer": first + (" (declines to guess)" if is_fallback(first) else ""),
        "confidence": confidence,
        "thought": (answer.reasoning or "").strip(),
        "final answer": answer.answer or answer.text.strip() or "(none)",
        "tokens": f"{len(answer.token_ids)}{_UNFINISHED.get(answer.finish_reason, '')}",
    }
    for name, text in parts.items():
        if text:
            console.print(Text.assemble((f"{name:<13}", "bold"), text), soft_wrap=True)


def _visual(config: AskConfig) -> list[dict]:
    if config.video is None:
        return []
    path = Path(config.video)
    if not path.is_file():
        raise MediaError("there is no such video or image", where=path, fix="Check the path")
    if path.suffix.lower() in IMAGES:
        return [{"type": "image", "image": str(path)} | dataclasses.asdict(config.image_budget)]
    return [{"type": "video", "video": str(path)} | config.video_budget.fields()]


def _answer(config: AskConfig, processor: Processor, prompt: Encoded, console: Console) -> Answer:
    """The answer; its text is printed while it is written."""
    penalty = config.repetition_penalty
    if penalty is None:
        penalty = checkpoint_defaults(resolve_folder(config.model)).get("repetition_penalty", 1.0)
    sampling = SamplingConfig(
        mode=config.mode,
        threshold=config.threshold,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        repetition_penalty=penalty,
        seed=config.seed,
        prompts=1,
    )
    with console.status("watching") as status:
        sampler = Sampler(load_model(config.model, dtype=config.dtype), processor, sampling)

        def write(prompt: int, branch: int, text: str) -> None:
            status.stop()
            console.print(Text(text, "dim"), end="", soft_wrap=True)

        answer = sampler.generate([prompt], 1, on_text=write)[0][0]
    console.print("\n")
    return answer
