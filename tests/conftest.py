"""The whole suite runs on the CPU with eight devices, set before anything imports jax. Here too: tiny checkpoints."""

import gc
import json
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Nearly all of the time goes into compiling programs that then run once or twice: so they are not optimised, and fused
# loops are written by XLA's older and quicker emitter.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)

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

# Head sizes are not width / heads, DeepStack taps are not consecutive, depths are no multiple of anything, windows are
# smaller than most frames, and all that a mesh of 8 splits divides by 4 or 2.
_TEXT = {
    "vocab_size": 384, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
    },
}  # fmt: skip
_VISION = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 56, "num_heads": 2, "out_hidden_size": 48,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2], "patch_size": 16, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip
_OLD_TEXT = {key: _TEXT[key] for key in _TEXT if key != "head_dim"} | {
    "hidden_size": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}  # fmt: skip
_OLD_VISION = {
    "depth": 5, "hidden_size": 32, "intermediate_size": 56, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1, 4],
    "tokens_per_second": 2,
}  # fmt: skip
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 1}
FAMILIES = {
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", _OLD_TEXT, _OLD_VISION),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", _TEXT, _VISION),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", _TEXT | _EXPERTS, _VISION),
}


FIRST = ["test_quickstart", "test_families", "test_recipes", "test_loop", "test_qwen_vl", "test_meshes", "test_step"]
"""Modules that take longest: begun last, they would end long after everything else."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


MAPPINGS = 30_000
"""Linux allows a process 65,530 memory mappings, and compiled programs take some: beyond them, compiling crashes."""


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops what earlier modules have compiled before there is too much of it: one worker may run the whole suite."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    """A folder as transformers 5 writes it, patch 16 and an 8 x 8 position grid; no weights."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    tokenizer = write_tokenizer(folder)
    vision = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64}
    write_json(folder / "config.json", {"model_type": "qwen3_vl", "vision_config": vision, **_token_ids(tokenizer)})
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint(family, tied=…)`: the folder of a tiny checkpoint with random weights and a nested config."""
    made = {}

    def make(family, tied=False):
        if (family, tied) not in made:
            made[family, tied] = write_checkpoint(tmp_path_factory.mktemp(family), family, tied)
        return made[family, tied]

    return make


@pytest.fixture(scope="session")
def write_tiny(tmp_path_factory):
    """`write_tiny(family, tied=…, text={…}, vision={…})`: a new folder with some facts changed."""
    return lambda family, **options: write_checkpoint(tmp_path_factory.mktemp(family), family, **options)


@pytest.fixture(scope="session")
def tiny_folder(checkpoint):
    """A whole tiny Qwen3-VL checkpoint, tied head."""
    return checkpoint("qwen3_vl", tied=True)


@pytest.fixture(scope="session")
def untied_folder(checkpoint):
    """The same with a head of its own."""
    return checkpoint("qwen3_vl", tied=False)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The tiny checkpoint in float32 on one device."""
    from videoauto_jax.models.hf import load_model

    return load_model(tiny_folder, dtype="float32")


@pytest.fixture(scope="session")
def tiny_processor(tiny_folder):
    """Its processor."""
    from videoauto_jax.data.processor import load_processor

    return load_processor(tiny_folder)


def write_checkpoint(folder, family, tied=False, text=None, vision=None):
    """A tiny checkpoint, its config changed by `text` and `vision`."""
    from videoauto_jax.models.hf import write_tensors

    ids = _token_ids(write_tokenizer(folder))
    architecture, text_facts, vision_facts = FAMILIES[family]
    facts = {
        "architectures": [architecture], "model_type": family, "tie_word_embeddings": tied,
        "text_config": {"model_type": f"{family}_text", **text_facts, **(text or {})},
        "vision_config": {"model_type": family, **vision_facts, **(vision or {})},
    }  # fmt: skip
    write_json(folder / "config.json", facts | ids)
    write_tensors(random_tensors(folder), folder)
    return folder


def random_tensors(folder):
    """HF tensors in float32; norms and biases are random too, so that none can be forgotten."""
    import numpy as np

    from videoauto_jax.models.config import read_config
    from videoauto_jax.models.hf import abstract_model
    from videoauto_jax.models.qwen_vl import parameter_paths
    from videoauto_jax.models.weights import rows

    config, rng = read_config(folder), np.random.default_rng(0)
    wanted, tensors = parameter_paths(abstract_model(config, "float32", "float32")), {}
    for row in rows(config):
        shape = row.hf_shape(wanted[row.path].shape)
        embedding = row.path.endswith("embedding")
        fan_in = shape[1] if len(shape) == 3 else np.prod(shape[1:])  # three axes: experts
        deviation = 0.2 if embedding else 0.1 if len(shape) == 1 else fan_in**-0.5
        for key in row.keys:
            mean = float(row.path.endswith("scale"))
            tensors[key] = rng.normal(mean, deviation, shape).astype(np.float32)
    return tensors


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
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id})
    return tokenizer


def _token_ids(tokenizer):
    names = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def write_json(path, content):
    path.write_text(json.dumps(content))
