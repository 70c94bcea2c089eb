"""From one annotation record to one training sample: the rules every data set shares."""

import dataclasses
import math
import os
from typing import Any

from videoauto_jax.errors import DataError
from videoauto_jax.protocol.prompts import BOXED_SUFFIX


@dataclasses.dataclass(frozen=True)
class Sample:
    """One prompt and what is known about its answer.

    Attributes:
        messages: the chat up to and including the question, in Hugging Face form. Shared, never modified.
        answer: ground truth as the reward reads it: string, number, [start, end] or {"answer", "segment"}.
        problem_type: which grader scores it (`math`, `exact_match`, `iou`, `gqa`, or a registered one).
        source: name of the data set in the recipe.
        id: unique within a run: `source/number`, `source/file/number` for directories; numbers count from 1.
        tags: labels from the recipe and the record, for metrics by slice.
        response: a demonstration for supervised fine-tuning, if the record has one.
    """

    messages: list[dict]
    answer: object
    problem_type: str
    source: str
    id: str
    tags: tuple[str, ...] = ()
    response: str | None = None

    @property
    def media(self) -> str | None:
        """Path of the sample's visual, None for text."""
        for message in self.messages:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] in ("image", "video"):
                    return part[part["type"]]
        return None


@dataclasses.dataclass(frozen=True)
class ImageBudget:
    """Pixels an image may have after resizing. Default: 4 to 768 tokens of Qwen2.5-VL, 28 x 28 pixels each."""

    min_pixels: int = 4 * 28**2
    max_pixels: int = 768 * 28**2


@dataclasses.dataclass(frozen=True)
class VideoBudget:
    """Frames and pixels a video may have. The defaults are upstream's for Qwen2.5-VL; Qwen3-VL counts 32 x 32 pixels.

    Attributes:
        min_pixels, max_pixels: of one frame.
        total_pixels: of the whole video, a pair of frames counted once.
        max_frames: most frames sampled.
        fps: frames sampled per second; not used where `nframes` is set.
        nframes: a fixed number of frames.
        min_frames: fewest frames sampled; the reader's own default where None.
    """

    min_pixels: int = 16 * 28**2
    max_pixels: int = 768 * 28**2
    total_pixels: int = 4096 * 28**2
    max_frames: int = 256
    fps: float = 2.0
    nframes: int | None = None
    min_frames: int | None = None

    def fields(self) -> dict[str, int | float]:
        """The keys of a video part of a chat message."""
        chosen = dataclasses.asdict(self)
        chosen.pop("fps" if self.nframes is not None else "nframes")
        return {key: value for key, value in chosen.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the records of one data set have in common."""

    source: str
    system_prompt: str | None
    data_path: str = ""
    image: ImageBudget = ImageBudget()
    video: VideoBudget = VideoBudget()
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """One annotation and the means to turn it into a `Sample`.

    Attributes:
        data: the JSON object.
        where: file and line or record number, for messages.
        key: `number` or `file/number` within its data set.
        group: stem of the annotation file it came from.
        origin: settings of its data set.
    """

    data: dict[str, Any]
    where: str
    key: str
    group: str
    origin: Origin

    def __getitem__(self, field: str) -> Any:
        if field not in self.data:
            raise DataError(f"field '{field}' is missing", where=self.where, fix=f"It has: {', '.join(self.data)}.")
        return self.data[field]

    def get(self, field: str, default: Any = None) -> Any:
        return self.data.get(field, default)

    def text(self, field: str) -> str:
        """A string field."""
        value = self[field]
        if not isinstance(value, str):
            raise self.wrong(field, "a string")
        return value

    def texts(self, field: str) -> list[str]:
        """A field that is a list of strings."""
        value = self[field]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(field, "a list of strings")
        return value

    def interval(self, field: str) -> list:
        """A [start, end] field, in seconds."""
        if not is_interval(self[field]):
            raise self.wrong(field, "[start, end] in seconds")
        return self[field]

    def wrong(self, field: str, expected: str) -> DataError:
        """The error for a field whose value is not what its data set promises."""
        shown = repr(self.data.get(field))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return DataError(f"field '{field}' must be {expected}, not {shown}", where=self.where)

    def image(self, path: str) -> dict:
        """The image part of the prompt; `path` is relative to the data set's `data_path`."""
        return {"type": "image", "image": os.path.join(self.origin.data_path, path)} | dataclasses.asdict(
            self.origin.image
        )

    def video(self, path: str, start: float | None = None, end: float | None = None) -> dict:
        """The video part of the prompt; `start` and `end` in seconds cut a segment out of it."""
        path = os.path.normpath(os.path.join(self.origin.data_path, path))
        segment = {"video_start": start, "video_end": end}
        segment = {key: value for key, value in segment.items() if value is not None}
        return {"type": "video", "video": path} | self.origin.video.fields() | segment

    def sample(
        self, question: str, answer: object, problem_type: str, visual: dict | None = None, *, grounding: bool = False
    ) -> Sample:
        """The sample of this record.

        Args:
            question: the user's text; the request for a boxed answer is appended unless `grounding`, whose prompts
                state their own format.
            visual: what `image` or `video` returned.
        """
        text = question if grounding else question + BOXED_SUFFIX
        system, origin = self.origin.system_prompt, self.origin
        content = [*([visual] if visual else []), {"type": "text", "text": text}]
        messages = [{"role": "system", "content": system}] if system is not None else []
        return Sample(
            messages=[*messages, {"role": "user", "content": content}],
            answer=answer,
            problem_type=problem_type,
            source=origin.source,
            id=f"{origin.source}/{self.key}",
            tags=origin.tags + tuple(self.texts("tags") if "tags" in self.data else ()),
            response=self.text("response") if self.get("response") is not None else None,
        )


def is_interval(value: object) -> bool:
    """Whether `value` is a pair of finite numbers."""
    return isinstance(value, list) and len(value) == 2 and all(is_number(bound) for bound in value)


def is_number(value: object) -> bool:
    """Whether `value` is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
