"""A tiny Qwen3-VL, untrained, as a regular Hugging Face folder."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import AutoTokenizer

from videoauto_jax.cli.quickstart.scene import make_scene, render_still
from videoauto_jax.cli.quickstart.tokenizer import make_tokenizer
from videoauto_jax.data.patches import pack_frames
from videoauto_jax.files import write_json
from videoauto_jax.models.config import QwenVLConfig, parse_config
from videoauto_jax.models.hf import rows, write_tensors
from videoauto_jax.models.inputs import VisionInputs
from videoauto_jax.models.qwen_vl import QwenVL, parameter_paths
from videoauto_jax.models.vision import VisionFeatures


@dataclasses.dataclass(frozen=True)
class TinySpec:
    """Sizes of the model; what is not here is as in the released ones.

    Attributes:
        hidden, intermediate, layers, heads, kv_heads: of the decoder, with heads of 32.
        vision_hidden, vision_depth: of the vision tower, with heads of 32.
        vocabulary: tokens learnt from the world's text.
    """

    hidden: int = 128
    intermediate: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vision_hidden: int = 64
    vision_depth: int = 2
    vocabulary: int = 1000


# Factors on fresh parameters. A narrow model that learns for minutes, not months, wants embeddings that are not drowned
# by the first layers' output: residual branches start small, and so do the logits.
_START = {
    "text/embed/embedding": 50.0,
    "text/layers/attention/o/kernel": 0.05,
    "text/layers/mlp/down/kernel": 0.05,
    "vision/blocks/attention/proj/kernel": 0.05,
    "vision/blocks/mlp/fc2/kernel": 0.05,
    "head/kernel": 0.1,
}


# Scene seeds of the pictures by which mergers are calibrated; worlds number theirs from 0.
_PICTURES = 10**12


def make_checkpoint(folder: str | Path, texts: Iterable[str], seed: int, spec: TinySpec) -> None:
    """Writes tokenizer, configs and random weights; `config.json` comes last and says that the folder is whole.

    Args:
        folder: created.
        texts: what the tokenizer learns from.
        seed: of the weights.
        spec: sizes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder, texts, spec.vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = _facts(spec, tokenizer)
    config = parse_config(facts)
    arrays = _start(config, seed)
    write_tensors(
        {key: tensor.astype(np.float32) for row in rows(config) for key, tensor in row.to_hf(arrays[row.path])}, folder
    )
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False})
    write_json(folder / "preprocessor_config.json", _preprocessor())
    write_json(folder / "config.json", facts)


def _start(config: QwenVLConfig, seed: int) -> dict[str, np.ndarray]:
    """Fresh parameters by path, scaled, and mergers that start out saying zero on average and one in size.

    The mergers' initialisation depends on data (LSUV, arXiv 1511.06422): fresh ones say nearly the same about every
    picture, and what differs from picture to picture would be lost beside the embeddings of words.
    """

    # Compiled whole: op by op, hundreds of little programs would be.
    @nnx.jit
    def make(rngs: nnx.Rngs, pictures: VisionInputs) -> tuple[QwenVL, VisionFeatures]:
        model = QwenVL(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
        state = nnx.state(model, nnx.Param)
        for path, leaf in nnx.to_flat_state(state):
            leaf[...] = leaf[...] * _START.get("/".join(map(str, path)), 1.0)
        nnx.update(model, state)
        return model, model.merge_vision(model.encode_vision(pictures))

    model, fresh = make(nnx.Rngs(seed), _pictures(seed))
    arrays = {path: np.array(array) for path, array in parameter_paths(model).items()}
    for merger, said in (("merger", fresh.slots), ("deepstack_mergers", fresh.deepstack)):
        centre, size = np.mean(said, axis=-2), float(np.std(said, axis=-2).mean())
        arrays[f"{merger}/fc2/kernel"] /= size
        arrays[f"{merger}/fc2/bias"] = (arrays[f"{merger}/fc2/bias"] - centre) / size
    return arrays


def _pictures(seed: int, count: int = 256) -> VisionInputs:
    """Stills of scenes, small as the stages of the quickstart see them."""
    scenes = [make_scene(_PICTURES + seed * count + i) for i in range(count)]
    frames = np.stack([render_still(scene, i % scene.seconds, 32) for i, scene in enumerate(scenes)])
    return pack_frames(np.repeat(frames, 2, axis=0), 16, 4)


def _facts(spec: TinySpec, tokenizer) -> dict:
    token = tokenizer.convert_tokens_to_ids
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 100_000.0,
        "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        "attention_bias": False,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": spec.vision_depth,
        "hidden_size": spec.vision_hidden,
        "intermediate_size": 2 * spec.vision_hidden,
        "num_heads": spec.vision_hidden // 32,
        "hidden_act": "gelu_pytorch_tanh",
        "out_hidden_size": spec.hidden,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_channels": 3,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": False,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def _preprocessor() -> dict:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 32**2, "longest_edge": 64 * 32**2},
    }
