"""The model against transformers' torch classes in float32: whole, in parts, and while generating."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from videoauto_jax.data.processor import load_processor
from videoauto_jax.data.visuals import load_visual
from videoauto_jax.data.windows import token_rows
from videoauto_jax.kernels.attention import self_attention
from videoauto_jax.models.hf import load_model, save_model
from videoauto_jax.models.rotary import text_rotary, vision_rotary
from videoauto_jax.models.tensor_files import stored_tensors
from videoauto_jax.models.vision import normalised
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # models this small only wait for each other's threads
BUDGET = {"min_pixels": 4 * 1024, "max_pixels": 16 * 1024, "total_pixels": 64 * 1024}
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
RNG = np.random.default_rng(0)


def image(width, height):
    return {"type": "image", "image": Image.fromarray(noise(height, width)), **BUDGET}


def video(frames, width, height, fps=2.0):
    return {"type": "video", "video": list(noise(frames, height, width)), "sample_fps": fps, **BUDGET}


def noise(*shape):
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def user(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


CASES = {
    "text": user("What happens in the video?"),
    "image": user(image(100, 70), "What is it?"),
    "two images": user(image(64, 64), "and", image(40, 130), "Which?"),
    "video": user(video(5, 90, 60), "What happens?"),  # an odd number of frames
    "two videos": user(video(4, 64, 64, fps=1.5), video(9, 50, 120, fps=0.7), "Which?"),
    "image and video": user("First", image(70, 50), "then", video(6, 64, 96), "What happens in the video?"),
}


forward = jax.jit(lambda model, inputs: model(inputs))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, checkpoint):
    """Our model and theirs from one folder, with its processor, which numbers positions as transformers 5 does."""
    folder = checkpoint(request.param, tied=request.param == "qwen3_vl")
    return load_model(folder, dtype="float32"), theirs(folder), load_processor(folder, position_convention="hf")


def theirs(folder):
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def torch_inputs(messages, processor):
    """What transformers takes for a conversation: its pixels are our patches, everything else is its own."""
    ids = processor.encode(messages).token_ids
    kinds = np.where(ids == processor.image_token_id, 1, np.where(ids == processor.video_token_id, 2, 0))
    inputs = {"input_ids": torch.tensor(ids)[None].long(), "mm_token_type_ids": torch.tensor(kinds)[None].int()}
    items = [part for message in messages for part in message["content"] if part["type"] != "text"]
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        visuals = [load_visual(item, processor.settings) for item in items if item["type"] == kind]
        if visuals:
            inputs[pixels] = torch.cat([pixel_values(visual, processor.settings) for visual in visuals])
            inputs[f"{kind}_grid_thw"] = torch.tensor([visual.grid for visual in visuals])
        if visuals and kind == "video" and processor.settings.family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([visual.second_per_grid for visual in visuals])
    return inputs


def pixel_values(visual, settings):
    """Normalised patches, row by row within each frame as transformers takes them."""
    mean, std = CLIP if settings.family == "qwen2_5_vl" else HALF
    fours = visual.vision.patches.reshape(-1, 4 * visual.vision.patches.shape[1])
    fours = fours[token_rows(visual.grid, settings.window)]
    pixels = fours.reshape(-1, 3, 2 * settings.patch_size**2).astype(np.float32) / 255
    return torch.tensor((pixels - np.float32(mean)[:, None]) / np.float32(std)[:, None]).flatten(1)


def their_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[0].numpy()


def one_of(stacked, index):
    graph, weights = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda stack: stack[index], weights))


def test_logits_of_every_kind_of_prompt_alone_and_in_one_padded_batch(pair):
    ours, reference, processor = pair
    batch = np.asarray(forward(ours, processor(list(CASES.values()))))
    for name, row in zip(CASES, batch):
        expected = their_logits(reference, torch_inputs(CASES[name], processor))
        np.testing.assert_allclose(row[: len(expected)], expected, atol=2e-5, err_msg=name)
    alone = np.asarray(forward(ours, processor([CASES[name]])))[0, : len(expected)]
    np.testing.assert_allclose(alone, expected, atol=2e-5)


def test_an_export_gives_transformers_the_same_logits(pair, checkpoint, tmp_path):
    ours, reference, processor = pair
    family = ours.config.family
    save_model(ours, tmp_path, like=checkpoint(family, tied=family == "qwen3_vl"), max_shard_size="100KB")
    inputs = torch_inputs(CASES["image and video"], processor)
    np.testing.assert_array_equal(their_logits(theirs(tmp_path), inputs), their_logits(reference, inputs))


def test_logits_of_a_head_of_its_own(untied_folder):
    ours, processor = load_model(untied_folder, dtype="float32"), load_processor(untied_folder)
    expected = their_logits(theirs(untied_folder), torch_inputs(CASES["text"], processor))
    found = np.asarray(forward(ours, processor([CASES["text"]])))[0, : len(expected)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_continuation(pair, penalty):
    ours, reference, processor = pair
    config = SamplingConfig(mode="second", max_new_tokens=32, temperature=0.0, prompts=5, repetition_penalty=penalty)
    sampler = Sampler(ours, processor, config)
    answers = sampler(list(CASES.values()))
    for name, answer in zip(CASES, answers):
        inputs = torch_inputs(CASES[name], processor)
        with torch.no_grad():
            written = reference.generate(**inputs, max_new_tokens=32, do_sample=False, repetition_penalty=penalty)
        assert answer.token_ids.tolist() == written[0, inputs["input_ids"].shape[1] :].tolist(), name
    assert {len(answer.token_ids) for answer in answers} & {32}  # not all stopped early
    sampler = Sampler(ours, processor, dataclasses.replace(config, prompts=1))
    for name, answer in zip(CASES, answers):
        if name in ("text", "image", "video"):
            (alone,) = sampler([CASES[name]])
            assert alone.token_ids.tolist() == answer.token_ids.tolist(), name


def test_the_vision_tower_and_its_mergers(pair):
    ours, reference, processor = pair
    visual = load_visual(CASES["video"][0]["content"][0], processor.settings)
    with torch.no_grad():
        pixels = pixel_values(visual, processor.settings)
        found = reference.model.visual(pixels, torch.tensor([visual.grid]))
    features = jax.jit(lambda model, vision: model.encode_vision(vision))(ours, visual.vision)
    merged = ours.merge_vision(features)
    rows = token_rows(visual.grid, processor.settings.window)
    np.testing.assert_allclose(features.last, found.last_hidden_state.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged.slots[rows], found.pooler_output.numpy(), atol=1e-5)
    deepstack = getattr(found, "deepstack_features", [])
    assert len(deepstack) == len(merged.deepstack) == len(ours.config.vision.deepstack_layers)
    for mine, expected in zip(merged.deepstack, deepstack):
        np.testing.assert_allclose(mine, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("index", [0, 2])
def test_one_decoder_layer(pair, index):
    ours, reference, _ = pair
    config = ours.config.text
    x = RNG.normal(size=(2, 9, config.hidden_size)).astype(np.float32)
    positions = RNG.integers(0, 500, (3, 2, 9)).astype(np.int32)
    text = reference.model.language_model
    with torch.no_grad():
        rotary = text.rotary_emb(torch.tensor(x), torch.tensor(positions).long())
        mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
        expected = text.layers[index](torch.tensor(x), position_embeddings=rotary, attention_mask=mask).numpy()
    mine = text_rotary(positions, config)
    for found, their in zip(mine, rotary):
        np.testing.assert_allclose(found, their.numpy(), atol=1e-5)
    ids = np.ones((2, 9), np.int32)
    attention = lambda q, k, v, cache: (self_attention(q, k, v, ids, causal=True), None)  # noqa: E731
    found, _ = one_of(ours.text.layers, index)(jnp.asarray(x), mine, attention, None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def passed(pair):
    """`passed(module of theirs)`: what it is given and what it makes of that within a forward pass over a video."""
    _, reference, processor = pair
    seen = {}
    keep = lambda module, given, made: seen.update({module: (given[0].numpy(), made.numpy())})  # noqa: E731
    visual, text = reference.model.visual, reference.model.language_model
    modules = [visual.patch_embed, *visual.blocks, *(layer.mlp for layer in text.layers), reference.lm_head]
    hooks = [module.register_forward_hook(keep) for module in modules]
    their_logits(reference, torch_inputs(CASES["video"], processor))
    for hook in hooks:
        hook.remove()
    return seen.__getitem__


@pytest.mark.parametrize("part", ["patches", "block", "whole-frame block", "mlp or experts", "head"])
def test_parts_by_themselves(pair, passed, part):
    ours, reference, processor = pair
    item = load_visual(CASES["video"][0]["content"][0], processor.settings)
    vision, config, visual = item.vision, ours.config.vision, reference.model.visual
    if part == "patches":
        found = ours.vision.patch_embed(normalised(vision.patches, config))
        fours = found.reshape(-1, 4, config.hidden_size)[token_rows(item.grid, processor.settings.window)]
        found, expected = fours.reshape(found.shape), passed(visual.patch_embed)[1]
    elif part.endswith("block"):
        layer = int(part == "whole-frame block")  # Qwen2.5's first that is one; in Qwen3 all are
        x, expected = passed(visual.blocks[layer])
        full = [layer in config.full_attention_layers] if ours.config.family == "qwen2_5_vl" else []
        rotary = vision_rotary(vision.rotary_ids, config.head_dim)
        found = one_of(ours.vision.blocks, layer)(jnp.asarray(x), rotary, vision, *full)
    elif part == "mlp or experts":
        x, expected = passed(reference.model.language_model.layers[1].mlp)
        found = one_of(ours.text.layers, 1).mlp(jnp.asarray(x))
    else:
        x, expected = passed(reference.lm_head)
        found = ours.logits(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "released"), [*((family, True) for family in FAMILIES), ("qwen2_5_vl", False)])
def test_a_checkpoint_that_transformers_wrote(family, released, tmp_path, checkpoint):
    """Its own layout of shards, keys, experts, dtype and config, and its own initial weights, made less trivial."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    processor = load_processor(checkpoint(family))
    reference = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint(family))).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.02))
    reference.save_pretrained(tmp_path, max_shard_size="100KB", save_original_format=released)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    modules = "model.language_model.norm.weight" in stored_tensors(tmp_path)
    assert modules == (family != "qwen2_5_vl" or not released)
    ours = load_model(tmp_path, dtype="float32")
    expected = their_logits(reference, torch_inputs(CASES["image"], processor))
    found = np.asarray(forward(ours, processor([CASES["image"]])))[0, : len(expected)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    save_model(ours, tmp_path / "out", like=tmp_path, dtype="like")
    assert stored_tensors(tmp_path / "out").keys() == stored_tensors(checkpoint(family)).keys()
    inputs = torch_inputs(CASES["image"], processor)
    np.testing.assert_allclose(their_logits(theirs(tmp_path / "out"), inputs), expected, atol=1e-6)


def test_bfloat16_is_near_float32(tiny_folder, tiny_model, tiny_processor):
    inputs = tiny_processor([CASES["image and video"]])
    exact, rounded = (np.asarray(forward(model, inputs)) for model in (tiny_model, load_model(tiny_folder)))
    assert rounded.dtype == np.float32
    used = inputs.segment_ids > 0
    assert 1e-3 < np.abs(rounded - exact)[used].mean() < 0.05 * exact[used].std()


def test_recomputation_changes_nothing(tiny_model, tiny_processor):
    inputs = tiny_processor([CASES["image"]])
    grads = [
        jax.jit(jax.grad(lambda model, remat=remat: jnp.sum(model.hidden(inputs, remat=remat) ** 2)))(tiny_model)
        for remat in (False, True)
    ]
    for plain, again in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-4 * np.abs(plain).max())
