"""From messages to tokens: the chat template, and the expansion of each visual's placeholder."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jinja2
import numpy as np
from jaxtyping import Int
from numpy import ndarray

from videoauto_jax.data.visuals import Visual, visual_kind
from videoauto_jax.errors import DataError, ModelError

VideoPrompt = Literal["inner", "outer"]
START, END = "<|vision_start|>", "<|vision_end|>"
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
_PLACEHOLDER = re.compile(r"(<\|vision_start\|>)?<\|(image|video)_pad\|>(<\|vision_end\|>)?")


def visual_items(messages: Sequence[Mapping]) -> list[Mapping]:
    """The visuals of a conversation in order.

    Raises:
        DataError: the messages are none, or not in chat form, or a text contains a reserved visual token.
    """
    if not messages:
        raise DataError("a conversation without messages", fix="Give at least one message")
    return [item for message in messages for item in _contents(message) if visual_kind(item)]


def render(messages: Sequence[Mapping], tokenizer, template: str, add_generation_prompt: bool) -> str:
    """The chat text, each visual one placeholder.

    A last message of the assistant is where the generation prompt goes on from: the response begins with its text.

    Raises:
        DataError: the template refuses the messages.
        ModelError: the template itself is broken.
    """
    plain, begun = [], ""
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": visual_kind(item)} if visual_kind(item) else item for item in content]
        plain.append({**message, "content": content})
    if add_generation_prompt and plain[-1]["role"] == "assistant":
        begun = "".join(item.get("text", "") for item in _contents(plain.pop()))
    try:
        text = tokenizer.apply_chat_template(
            plain, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text + begun
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template is broken, line {error.lineno}: {error}"
        raise ModelError(what, fix="Restore the checkpoint's chat_template.jinja") from error
    except jinja2.TemplateError as error:
        fix = "Check the roles and the order of the messages"
        raise DataError(f"the chat template refuses the messages: {error}", fix=fix) from error


def expand(
    text: str, visuals: Sequence[Visual], family: str, video_prompt: VideoPrompt, merge_size: int
) -> tuple[str, list[int]]:
    """The chat text with one placeholder for every *run* of visual tokens, and the length of each run.

    Qwen3-VL writes the time of every temporal patch in front of it. `inner` (transformers 4.57, which the released
    checkpoints were trained with) puts these blocks in place of the template's own pair of start and end tokens,
    `outer` (transformers 5.23) between them.

    Raises:
        ModelError: the template did not place every visual.
    """
    remaining, counts = iter(visuals), []

    def replace(match: re.Match) -> str:
        visual = next(remaining, None)
        if visual is None or visual.kind != match[2]:
            raise _misplaced()
        time, height, width = visual.grid
        area = height * width // merge_size**2
        if visual.kind == "image" or family != "qwen3_vl":
            counts.append(time * area)
            return match[0]
        counts.extend([area] * time)
        blocks = "".join(f"<{second:.1f} seconds>{START}{PADS['video']}{END}" for second in visual.timestamps)
        if video_prompt == "inner" and match[1] and match[3]:
            return blocks
        return f"{match[1] or ''}{blocks}{match[3] or ''}"

    text = _PLACEHOLDER.sub(replace, text)
    if next(remaining, None) is not None:
        raise _misplaced()
    return text, counts


def repeat_pads(token_ids: Sequence[int], counts: Sequence[int], pad_ids: tuple[int, int]) -> Int[ndarray, "T"]:
    """Tokens with the i-th placeholder repeated `counts[i]` times."""
    token_ids = np.asarray(token_ids, np.int32)
    repeats = np.ones(len(token_ids), np.int64)
    repeats[np.isin(token_ids, pad_ids)] = counts
    return np.repeat(token_ids, repeats)


def _contents(message: Mapping) -> Iterator[Mapping]:
    content = message.get("content") if isinstance(message, Mapping) and "role" in message else None
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not all(isinstance(item, Mapping) for item in content):
        raise DataError(
            f"not a chat message: {str(message)[:80]}",
            fix='Write {"role": "user", "content": [{"type": "text", "text": …}, …]}',
        )
    for item in content:
        if visual_kind(item) is None:
            _check_text(item)
        yield item


def _check_text(item: Mapping) -> None:
    text = item.get("text")
    if not isinstance(text, str):
        raise DataError(f"a message part is neither text nor a visual: {str(item)[:80]}", fix='Give it a "text"')
    for token in (START, END, *PADS.values()):
        if token in text:
            raise DataError(f"a text contains the reserved token {token}", where=text[:80], fix="Remove it")


def _misplaced() -> ModelError:
    return ModelError(
        "the chat template does not place the visuals of the messages",
        fix="Use the chat_template of a Qwen-VL checkpoint",
    )
