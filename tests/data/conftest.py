"""A tiny Qwen3-VL folder (tokenizer, template, configs; no weights) and clips whose frames tell their own number."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
ORDINARY = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
{%- else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    """A folder as transformers 5 writes it, patch 16 and an 8 x 8 position grid."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    tokenizer = write_tokenizer(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (
        ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    vision = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64}
    write_json(folder / "config.json", {"model_type": "qwen3_vl", "vision_config": vision, **ids})
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id})
    return folder


def write_tokenizer(folder, special=SPECIAL):
    """A byte-level BPE with Qwen's splitting rule and its added tokens behind the vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence([split, bytes_]), decoders.ByteLevel()
    corpus = ["What happens in the video? :< \\boxed{A} seconds> seconds <0.5 assistant user system "] * 20
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_json(path, content):
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def write_clip():
    return _write_clip


@pytest.fixture(scope="session")
def frame_number():
    return _frame_number


def _write_clip(path, frames=60, size=(64, 64), fps=30, codec="libx264", gop=12, pts=None, rotation=None, options=None,
                container=None, seed=None):  # fmt: skip
    """A clip whose i-th frame holds i in eight bright or dark columns, or noise from `seed`; pts in milliseconds."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.options = gop, options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            noise = None if seed is None else rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(_numbered(i, size) if noise is None else noise, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            if pts is not None:
                frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _numbered(i, size):
    """Blue in the top quarter, below it the bits of i from left to right."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    for bit in range(8):
        image[:, bit * width // 8 : (bit + 1) * width // 8] = 255 * (i >> bit & 1)
    image[: height // 4] = (0, 0, 255)
    return image


def _frame_number(frame):
    height, width = frame.shape[:2]
    row = frame[height * 3 // 4].mean(axis=-1)
    return sum((row[bit * width // 8 + width // 16] > 128) << bit for bit in range(8))
