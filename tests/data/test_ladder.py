"""Any mixture of text, images and videos is one of few compiled programs."""

import jax
import numpy as np
import pytest

from videoauto_jax.data.collate import bucket
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.patches import pack_frames, segment_bound
from videoauto_jax.data.processor import load_processor
from videoauto_jax.data.visuals import load_visual
from videoauto_jax.models.hf import load_model

LENGTHS, PATCHES, BATCHES = (64, 128, 256, 512), (256, 512, 1024, 2048), 200


def random_prompt(rng, side=8):
    """Text, an image or a video of any size, its patches 2 x 2 pixels large so that hundreds of batches are cheap."""
    kind = rng.integers(3)
    height, width = rng.integers(1, side + 1, 2)
    frames = {0: 0, 1: 1, 2: 2 * int(rng.integers(1, 4))}[int(kind)]
    tokens = max(frames // 2, int(frames == 1)) * int(height * width)
    length = tokens + int(rng.integers(5, 60))
    vision = pack_frames(np.zeros((frames, 4 * height, 4 * width, 3), np.uint8), 2, 4) if frames else None
    index = np.full(length, -1, np.int32)
    index[:tokens] = np.arange(tokens)
    return Encoded(np.ones(length, np.int32), np.zeros((3, length), np.int32), index, vision, length, "")


@pytest.mark.parametrize("ladders", [{"lengths": LENGTHS, "patches": PATCHES}, {}], ids=["given", "own"])
def test_the_number_of_programs_is_bounded_by_the_ladders(ladders, qwen_folder):
    """The programs differ by shapes and by the static bound of a segment, so a function of those counts them."""
    rng, processor = np.random.default_rng(0), load_processor(qwen_folder)
    program = jax.jit(lambda inputs: inputs.token_ids[0, 0])
    kinds = set()
    for _ in range(BATCHES):
        batch = processor.collate([random_prompt(rng) for _ in range(4)], **ladders)
        kinds.add((batch.token_ids.shape, None if batch.vision is None else batch.vision.patches.shape))
        program(batch)
    longest, largest = 64 * 3 + 60, 4 * 3 * 64 * 4
    lengths = {bucket(n, ladders.get("lengths")) for n in range(1, longest)}
    patches = {bucket(n, ladders.get("patches")) for n in range(1, min(largest, 2048))}
    bounds = {segment_bound(4 * n) for n in range(1, 65)}
    assert program._cache_size() <= len(lengths) * (len(patches) * len(bounds) + 1)
    assert len(kinds) <= program._cache_size() < BATCHES // 3


def test_the_model_is_compiled_no_more_often_than_the_ladders_allow(write_tiny):
    vision = {"depth": 1, "deepstack_visual_indexes": [0], "patch_size": 2, "num_position_embeddings": 16}
    folder = write_tiny("qwen3_vl", text={"num_hidden_layers": 1}, vision=vision)
    model, processor = load_model(folder, dtype="float32"), load_processor(folder)
    forward, rng = jax.jit(lambda model, inputs: model(inputs)), np.random.default_rng(0)
    lengths, patches = (96, 128), (256, 768)
    for _ in range(BATCHES):
        prompts = [random_prompt(rng, side=4) for _ in range(4)]
        logits = forward(model, processor.collate(prompts, lengths=lengths, patches=patches))
    assert logits.shape[0] == 4 and logits.shape[1] in lengths
    bounds = {segment_bound(4 * n) for n in range(1, 17)}
    assert 2 < forward._cache_size() <= len(lengths) * (len(patches) * len(bounds) + 1) == 14


def test_a_mixed_batch_is_one_program(checkpoint):
    processor, rng = load_processor(checkpoint("qwen2_5_vl")), np.random.default_rng(0)
    program = jax.jit(lambda inputs: inputs.token_ids[0, 0])
    budget = {"min_pixels": 3136, "max_pixels": 16 * 784, "total_pixels": 32 * 784}
    for sizes in ((60, 90), (120, 33), (200, 200)):
        image = {"type": "image", "image": rng.integers(0, 256, (*sizes, 3), dtype=np.uint8), **budget}
        video = {"type": "video", "video": list(rng.integers(0, 256, (6, *sizes, 3), dtype=np.uint8)), **budget}
        chats = [
            [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}] for parts in ([], [image], [video])
        ]
        inputs = processor.collate([processor.encode(chat) for chat in chats], lengths=[256], patches=[512])
        bound = max(load_visual(item, processor.settings).vision.segment_bound for item in (image, video))
        assert inputs.vision.segment_bound == bound
        program(inputs)
    assert program._cache_size() <= 3
