"""The only way into the model: chat messages to `ModelInputs`, without torch and without a device.

Rollout, training, evaluation and the demo share it, so that none of them can place a visual, sample a frame or number a
position differently from the others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from videoauto_jax.data import chat
from videoauto_jax.data.cache import VisualCache, visual_key
from videoauto_jax.data.collate import collate
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.patches import concatenate_vision
from videoauto_jax.data.resize import ResizeMode
from videoauto_jax.data.settings import VisionSettings, read_settings
from videoauto_jax.data.tokenizer import chat_template, check_vocabulary, load_tokenizer
from videoauto_jax.data.visuals import ReaderName, Visual, load_visual
from videoauto_jax.data.windows import token_rows
from videoauto_jax.errors import ConfigError, DataError, ModelError
from videoauto_jax.models.config import resolve_folder
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.rope import Convention, mrope_positions, next_position
from videoauto_jax.protocol.grammar import CLOSE, OPEN

Messages = Sequence[Mapping]
_TOKENS = {
    "image_token_id": chat.PADS["image"],
    "video_token_id": chat.PADS["video"],
    "vision_start_token_id": chat.START,
    "vision_end_token_id": chat.END,
}


class Processor:
    """Tokenizer, chat template and vision preprocessing of one checkpoint. It can be pickled to data workers.

    Attributes:
        tokenizer: the checkpoint's tokenizer (transformers, fast).
        settings: its vision facts.
        eos_token_ids: tokens that end a text.
        pad_token_id: fills padded rows.
        max_prompt_tokens: longest prompt that `encode` accepts, or None.
    """

    def __init__(
        self,
        tokenizer,
        settings: VisionSettings,
        chat_template: str,
        *,
        max_prompt_tokens: int | None = None,
        video_prompt: chat.VideoPrompt = "inner",
        position_convention: Convention = "upstream",
        resize: ResizeMode = "upstream",
        video_reader: ReaderName = "pyav",
        video_threads: int = 1,
        cache_bytes: int = 512 * 2**20,
    ):
        """
        Args:
            video_prompt: where Qwen3-VL's timestamps stand, see `chat.expand`.
            position_convention: see `models.rope`.
            resize: how frames of videos are resized, see `data.resize`.
            video_reader: what reads frames: `pyav`, exact on every file, or `decord` (see `data.decord_reader`).
            video_threads: threads that decode one video.
            cache_bytes: memory for visuals that are asked about again, see `data.cache`; 0 keeps none.

        Raises:
            ModelError: the tokenizer lacks a vision token, or numbers it otherwise than config.json.
            ConfigError: an option has no such value.
        """
        _check_option("video_prompt", video_prompt, chat.VideoPrompt)
        _check_option("position_convention", position_convention, Convention)
        _check_option("resize", resize, ResizeMode)
        _check_option("video_reader", video_reader, ReaderName)
        self.tokenizer, self.settings, self.chat_template = tokenizer, settings, chat_template
        self.max_prompt_tokens, self.video_prompt = max_prompt_tokens, video_prompt
        self.position_convention, self.resize, self.video_threads = position_convention, resize, video_threads
        self.video_reader = video_reader
        tokens = {name: _token_id(tokenizer, settings, name) for name in _TOKENS}
        self.image_token_id, self.video_token_id = tokens["image_token_id"], tokens["video_token_id"]
        self.eos_token_ids = _eos_token_ids(tokenizer, settings)
        self._silent = _silent_token_ids(tokenizer) | set(self.eos_token_ids)
        pad = settings.token_ids.get("pad_token_id", tokenizer.pad_token_id)
        self.pad_token_id: int = self.eos_token_ids[0] if pad is None else pad
        self._cache = VisualCache(cache_bytes)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options) -> "Processor":
        """The processor of a checkpoint folder, or of a model on the Hugging Face hub; options as the constructor's.

        Raises:
            ModelError: no such folder, or it is not a Qwen-VL checkpoint with a tokenizer and a chat template.
        """
        folder = resolve_folder(path)
        settings = read_settings(folder)
        tokenizer = load_tokenizer(folder)
        check_vocabulary(folder, tokenizer)
        return cls(tokenizer, settings, chat_template(folder, tokenizer), **options)

    def __call__(self, conversations: Sequence[Messages]) -> ModelInputs:
        """A batch of prompts, padded to the default ladders."""
        return self.collate([self.encode(messages) for messages in conversations])

    def encode(self, messages: Messages, add_generation_prompt: bool = True) -> Encoded:
        """One conversation as the model sees it, unpadded.

        Args:
            messages: HF chat form; any number of images and videos, each with its own budget (`min_pixels`,
                `max_pixels`, `total_pixels`, `max_frames`, `min_frames`, `fps` or `nframes`, `video_start`,
                `video_end`).
            add_generation_prompt: end with the opening of the assistant's turn, and with the text of its message if
                that is the last one: the response goes on from there.

        Raises:
            DataError: messages not in chat form, a reserved token in a text, or more than `max_prompt_tokens`.
            MediaError: a visual that cannot be read or does not fit its budget.
            ModelError: the chat template does not place the visuals.
        """
        items = chat.visual_items(messages)
        text = chat.render(messages, self.tokenizer, self.chat_template, add_generation_prompt)
        visuals = [self._visual(item) for item in items]
        settings = self.settings
        expanded, counts = chat.expand(text, visuals, settings.family, self.video_prompt, settings.merge_size)
        token_ids = self.tokenizer(expanded, add_special_tokens=False, verbose=False)["input_ids"]
        token_ids = chat.repeat_pads(token_ids, counts, (self.image_token_id, self.video_token_id))
        self._check_length(token_ids, messages)
        positions = self._positions(token_ids, visuals)
        return Encoded(
            token_ids=token_ids,
            positions=positions,
            vision_index=self._vision_index(token_ids, visuals),
            vision=concatenate_vision([visual.vision for visual in visuals]),
            next_position=next_position(positions, self.position_convention),
            text=text,
        )

    def collate(
        self, encoded: Sequence[Encoded], *, lengths: Sequence[int] | None = None, patches: Sequence[int] | None = None
    ) -> ModelInputs:
        """Prompts as one right-padded batch, see `data.collate.collate`."""
        return collate(encoded, lengths=lengths, patches=patches, pad_token_id=self.pad_token_id)

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of generated tokens, by default without ends and special tokens. `<think>` and `</think>` are text, as
        they are to the protocol's automaton: in Qwen's tokenizers they are not special, in others they may be."""
        ids = np.asarray(token_ids).tolist()
        return self.tokenizer.decode([i for i in ids if i not in self._silent] if skip_special else ids)

    def _visual(self, item: Mapping) -> Visual:
        how = self.settings, self.resize, self.video_threads, self.video_reader
        return self._cache.get(visual_key(item), lambda: load_visual(item, *how))

    def _vision_index(self, token_ids: np.ndarray, visuals: Sequence[Visual]) -> np.ndarray:
        settings, index, used = self.settings, np.full(len(token_ids), -1, np.int32), 0
        rows = [np.zeros(0, np.int32)]
        for visual in visuals:
            rows.append(used + token_rows(visual.grid, settings.window, settings.merge_size))
            used += len(rows[-1])
        index[np.isin(token_ids, (self.image_token_id, self.video_token_id))] = np.concatenate(rows)
        return index

    def _positions(self, token_ids: np.ndarray, visuals: Sequence[Visual]) -> np.ndarray:
        return mrope_positions(
            token_ids,
            [visual.grid for visual in visuals],
            family=self.settings.family,
            convention=self.position_convention,
            second_per_grid=[visual.second_per_grid for visual in visuals if visual.kind == "video"],
            image_token_id=self.image_token_id,
            video_token_id=self.video_token_id,
            merge_size=self.settings.merge_size,
            tokens_per_second=self.settings.tokens_per_second,
        )

    def _check_length(self, token_ids: np.ndarray, messages: Messages) -> None:
        if self.max_prompt_tokens is not None and len(token_ids) > self.max_prompt_tokens:
            visual = sum(int((token_ids == pad).sum()) for pad in (self.image_token_id, self.video_token_id))
            raise DataError(
                f"a prompt has {len(token_ids)} tokens ({visual} of them visual), {self.max_prompt_tokens} are allowed",
                where=_describe(messages),
                fix="Lower total_pixels, max_pixels or max_frames, or raise max_prompt_tokens (with prompt_lengths)",
            )


def load_processor(path: str | Path, **options) -> Processor:
    """`Processor.from_pretrained`."""
    return Processor.from_pretrained(path, **options)


def _token_id(tokenizer, settings: VisionSettings, name: str) -> int:
    token, stated = _TOKENS[name], settings.token_ids.get(name)
    found = tokenizer.convert_tokens_to_ids(token)
    if found in (None, tokenizer.unk_token_id):
        raise ModelError(f"the tokenizer lacks {token}", where=tokenizer.name_or_path, fix="Use a Qwen-VL tokenizer")
    if stated is not None and stated != found:
        raise ModelError(
            f"{token} is {found} for the tokenizer and {stated} in config.json",
            where=tokenizer.name_or_path,
            fix="Use the tokenizer and the config.json of one checkpoint",
        )
    return found


def _eos_token_ids(tokenizer, settings: VisionSettings) -> tuple[int, ...]:
    """The tokenizer's end of turn first, then what the generation config adds (for Qwen: end of text)."""
    stated = settings.token_ids.get("eos_token_id", [])
    stated = [stated] if isinstance(stated, int) else stated
    return tuple(dict.fromkeys([i for i in (tokenizer.eos_token_id, *stated) if i is not None]))


def _silent_token_ids(tokenizer) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return {index for index, token in added if token.special and token.content not in (OPEN, CLOSE)}


def _check_option(name: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}={value!r} is not known", fix=f"Use one of {', '.join(get_args(choices))}")


def _describe(messages: Messages) -> str:
    """The visual, or the beginning of the text, by which a user recognises a prompt."""
    items = chat.visual_items(messages)
    named = [str(value) for item in items for value in item.values() if isinstance(value, str) and "/" in value]
    return (named or [str(messages[-1]["content"])])[0][:200]
