"""A small byte-level BPE tokenizer of the Qwen3 kind, learnt from the world's own text, and Qwen3-VL's chat format."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from videoauto_jax.cli.quickstart.scene import FRAMES_PER_SECOND
from videoauto_jax.cli.quickstart.world import data_sets
from videoauto_jax.data.datasets import load_datasets
from videoauto_jax.errors import DataError
from videoauto_jax.files import write_atomic
from videoauto_jax.protocol.prompts import VARIANTS, system_prompt

# Added tokens in the order of their ids, which follow the vocabulary at once. Special ones vanish from decoded answers.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
ORDINARY = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{ '<|im_start|>' + message.role + '\\n' }}\n"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}\n"
    "{%- for part in message.content -%}\n"
    "{%- if part.type == 'image' or 'image' in part -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}\n"
    "{%- elif part.type == 'video' or 'video' in part -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}\n"
    "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}\n"
    "{%- endfor -%}{%- endif -%}\n"
    "{{ '<|im_end|>\\n' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}\n"
)
_MAX_LENGTH = 32768
_ADDED = re.compile("|".join(map(re.escape, SPECIAL + ORDINARY)))


def world_texts(world: str | Path) -> Iterator[str]:
    """Everything a model reads and writes before it is rewarded, the other system prompts, and the times of frames."""
    for split in ("look", "study", "warmup"):
        sets = data_sets(world, split)
        for sample in load_datasets(list(sets), sets, system_prompt("answer_twice")):
            for message in sample.messages:
                content = message["content"]
                yield content if isinstance(content, str) else content[-1]["text"]
            yield sample.response
    yield from (system_prompt("answer_twice", variant) for variant in VARIANTS)
    yield from (system_prompt("direct"), system_prompt("cot"), "system\n", "user\n", "assistant\n")
    yield from (f"<{step / FRAMES_PER_SECOND:.1f} seconds>" for step in range(8 * FRAMES_PER_SECOND))


def make_tokenizer(folder: str | Path, texts: Iterable[str], vocab_size: int = 1000) -> None:
    """Learns a tokenizer and writes its Hugging Face files into a folder. The same texts give the same files.

    Args:
        vocab_size: most tokens before the added ones, at least 256; fewer are made where the texts need fewer.

    Raises:
        DataError: there are no texts.
    """
    from transformers import AddedToken, Qwen2Tokenizer

    vocab, merges = _learn(texts, vocab_size)
    added = [AddedToken(text, special=text in SPECIAL, normalized=False) for text in SPECIAL + ORDINARY]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        # States the ids; without it the class puts the padding and end tokens first.
        added_tokens_decoder={len(vocab) + i: token for i, token in enumerate(added)},
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[text for text in SPECIAL if text not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=_MAX_LENGTH,
        add_bos_token=False,
        clean_up_tokenization_spaces=False,
        split_special_tokens=False,
        errors="replace",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    write_atomic(Path(folder) / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    write_atomic(Path(folder) / "merges.txt", "".join(f"{left} {right}\n" for left, right in merges))


def _learn(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], Sequence[tuple[str, str]]]:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    # Each once: a system prompt that begins every text would be read thousands of times to learn the same merges.
    pieces = list(dict.fromkeys(piece for text in texts for piece in _ADDED.split(text)))
    if not any(pieces):
        raise DataError("no text to learn a tokenizer from")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # While learning only: no merge crosses a brace, so a box's content has tokens of its own, as in Qwen.
            pre_tokenizers.Split(Regex(r"[{}\\]"), "isolated"),
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pieces, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
