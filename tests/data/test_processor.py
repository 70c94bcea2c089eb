"""Messages to model inputs: prompts spelled out by hand, real files, bad input."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videoauto_jax.data import visuals
from videoauto_jax.data.processor import load_processor
from videoauto_jax.data.vision import frame_range, plan_video
from videoauto_jax.data.windows import token_rows
from videoauto_jax.errors import ConfigError, DataError, MediaError, ModelError
from videoauto_jax.models.rope import mrope_positions

BUDGET = {"min_pixels": 4 * 1024, "max_pixels": 16 * 1024, "total_pixels": 64 * 1024, "max_frames": 8, "fps": 2.0}
START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"


@pytest.fixture(scope="module")
def processor(qwen_folder):
    return load_processor(qwen_folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_clip):
    return str(write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", frames=90, size=(96, 64)))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)).save(path)
    return str(path)


def user(*parts):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


def video(clip, **more):
    return {"type": "video", "video": clip, **BUDGET, **more}


def spelled(processor, body):
    text = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n"
    return processor.tokenizer(text)["input_ids"]


def test_text(processor):
    encoded = processor.encode(user("What happens?"))
    assert encoded.token_ids.tolist() == spelled(processor, "What happens?")
    assert encoded.vision is None
    assert (encoded.vision_index == -1).all()
    assert encoded.next_position == len(encoded.token_ids)
    assert encoded.text.endswith("<|im_start|>assistant\n")
    assert not processor.encode(user("Hi"), add_generation_prompt=False).text.endswith("assistant\n")
    begun = [*user("What happens?"), {"role": "assistant", "content": "\\boxed{Answer:"}]
    assert processor.encode(begun).text == encoded.text + "\\boxed{Answer:"


@pytest.mark.parametrize("video_prompt", ["inner", "outer"])
def test_video(video_prompt, qwen_folder, clip):
    processor = load_processor(qwen_folder, video_prompt=video_prompt)
    encoded = processor.encode(user("Look:", video(clip), "What happens?"))
    plan = plan_video(90, 30.0, 64, 96, BUDGET)
    per_patch = plan.tokens // plan.grid[0]
    blocks = "".join(f"<{t:.1f} seconds>{START}{VIDEO * per_patch}{END}" for t in plan.timestamps)
    blocks = blocks if video_prompt == "inner" else f"{START}{blocks}{END}"
    assert encoded.token_ids.tolist() == spelled(processor, f"Look:{blocks}What happens?")
    is_video = encoded.token_ids == processor.video_token_id
    np.testing.assert_array_equal(encoded.vision_index[is_video], np.arange(plan.tokens))
    assert (encoded.vision_index[~is_video] == -1).all()
    ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
    np.testing.assert_array_equal(encoded.positions, mrope_positions(encoded.token_ids, [plan.grid], **ids))
    assert encoded.next_position == encoded.positions.max() + 1
    assert len(encoded.vision.patches) == np.prod(plan.grid)
    assert encoded.vision.segment_ids.max() == plan.grid[0]


@pytest.mark.parametrize("convention", ["upstream", "hf"])
def test_a_video_of_qwen2_5(convention, checkpoint, clip):
    processor = load_processor(checkpoint("qwen2_5_vl"), position_convention=convention)
    budget = {"min_pixels": 4 * 784, "max_pixels": 24 * 784, "total_pixels": 96 * 784, "max_frames": 6, "fps": 2.0}
    item = {"type": "video", "video": clip, **budget, "video_end": 1.9}
    encoded = processor.encode(user("Look:", item, "What happens?"))
    plan = plan_video(90, 30.0, 64, 96, item, patch_size=14)
    assert encoded.token_ids.tolist() == spelled(processor, f"Look:{START}{VIDEO * plan.tokens}{END}What happens?")
    is_video = encoded.token_ids == processor.video_token_id
    np.testing.assert_array_equal(encoded.vision_index[is_video], token_rows(plan.grid, 2))
    assert sorted(encoded.vision_index[is_video]) == list(range(plan.tokens))
    ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
    options = {"family": "qwen2_5_vl", "convention": convention, "second_per_grid": [plan.second_per_grid]}
    expected = mrope_positions(encoded.token_ids, [plan.grid], **options, **ids)
    np.testing.assert_array_equal(encoded.positions, expected)
    # Less than a second between temporal patches: upstream truncates it to 0, and time stands still.
    assert 0.5 <= plan.second_per_grid < 1
    assert (np.ptp(encoded.positions[0, is_video]) == 0) == (convention == "upstream")
    assert encoded.vision.window_ids is not None and encoded.vision.position_index is None


def test_outer_blocks_are_those_of_transformers(processor, clip):
    pytest.importorskip("torch")
    from types import SimpleNamespace

    from transformers import Qwen3VLProcessor

    plan = plan_video(90, 30.0, 64, 96, BUDGET)
    oracle = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token=START,
        vision_end_token=END,
        video_token=VIDEO,
    )
    oracle._calculate_timestamps = Qwen3VLProcessor._calculate_timestamps.__get__(oracle)
    metadata = SimpleNamespace(fps=30.0, frames_indices=list(plan.indices))
    video_inputs = {"video_grid_thw": np.array([plan.grid]), "video_metadata": [metadata]}
    blocks = Qwen3VLProcessor.replace_video_token(oracle, video_inputs, 0)
    assert processor.encode(user(video(clip))).token_ids.tolist() == spelled(processor, blocks)


@pytest.mark.parametrize("wanted", [{"fps": 0.5}, {"fps": 1.5, "video_start": 0.7}, {"nframes": 10, "fps": None}])
def test_fractional_rates_are_those_of_transformers(wanted, checkpoint, qwen_folder, tmp_path, write_clip):
    """Seconds between temporal patches, timestamps and positions, from a file of 30000 / 1001 frames per second."""
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from transformers import Qwen2_5_VLModel, Qwen3VLProcessor
    from transformers.video_utils import VideoMetadata

    path, rate = write_clip(tmp_path / "ntsc.mp4", frames=200, fps=Fraction(30000, 1001)), 30000 / 1001
    item = {"type": "video", "video": path, "min_pixels": 4096, "max_pixels": 4096, "min_frames": 2, **wanted}
    first, _, total = frame_range(item, 200, rate)
    indices = list(plan_video(200, rate, 64, 64, item).indices)
    stamps = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate)
    newer = load_processor(qwen_folder)
    text = newer.decode(newer.encode(user(item)).token_ids)
    assert re.findall(r"<([\d.]+) seconds>", text) == [f"{stamp:.1f}" for stamp in stamps]

    # qwen-vl-utils counts the frames of the segment as all there are.
    metadata = VideoMetadata(total_num_frames=total, fps=rate, frames_indices=[i - first for i in indices])
    processor = load_processor(checkpoint("qwen2_5_vl"), position_convention="hf")
    encoded = processor.encode(user("Look:", item, "What?"))
    facts = {"spatial_merge_size": 2, "tokens_per_second": 2}
    oracle = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(**facts)))
    oracle.get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids.__get__(oracle)
    expected, _ = Qwen2_5_VLModel.get_rope_index(
        oracle,
        torch.tensor(encoded.token_ids)[None],
        torch.tensor(2 * (encoded.token_ids == processor.video_token_id))[None],
        None,
        torch.tensor([plan_video(200, rate, 64, 64, item, patch_size=14).grid]),
        second_per_grid_ts=torch.tensor([2 / metadata.sampled_fps]),
    )
    np.testing.assert_array_equal(encoded.positions, expected[:, 0])


def test_pixels_of_a_video_are_its_frames(processor, tmp_path, write_clip, frame_number):
    path = write_clip(tmp_path / "b.mp4", frames=40, size=(64, 64))
    budget = {"type": "video", "video": path, "min_pixels": 4096, "max_pixels": 4096, "nframes": 8}
    patches = processor.encode(user(budget)).vision.patches
    # (t, row of 2, column of 2, 2, 2) patches of (channel, frame, y, x) back to frames.
    grid = patches.reshape(4, 2, 2, 2, 2, 3, 2, 16, 16).transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(8, 64, 64, 3)
    assert [frame_number(frame) for frame in grid] == list(plan_video(40, 30.0, 64, 64, {"nframes": 8}).indices)


def test_several_visuals_in_order(processor, clip, picture):
    still = {"type": "image", "image": picture, "min_pixels": 4096, "max_pixels": 8 * 1024}
    encoded = processor.encode(user(still, "and", video(clip, nframes=4, fps=None), still, "differ?"))
    images = (encoded.token_ids == processor.image_token_id).sum()
    assert images == 2 * 6
    np.testing.assert_array_equal(
        encoded.vision_index[encoded.vision_index >= 0], np.arange(len(encoded.vision.patches) // 4)
    )
    one = processor.encode(user(still)).vision.patches
    np.testing.assert_array_equal(encoded.vision.patches[: len(one)], one)
    np.testing.assert_array_equal(encoded.vision.patches[-len(one) :], one)
    np.testing.assert_array_equal(one.reshape(-1, 3, 2, 256)[:, :, 0], one.reshape(-1, 3, 2, 256)[:, :, 1])


def test_a_list_of_frames_and_a_segment(processor, clip, picture):
    frames = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(3)]
    listed = {
        "type": "video",
        "video": [*frames, picture][:3],
        "min_pixels": 4096,
        "max_pixels": 4096,
        "sample_fps": 1.0,
    }
    encoded = processor.encode(user(listed))
    assert "<0.5 seconds>" in processor.decode(encoded.token_ids)
    assert "<2.5 seconds>" in processor.decode(encoded.token_ids)
    assert encoded.vision.patches.shape == (2 * 16, 1536)
    assert set(encoded.vision.patches[16:].reshape(-1).tolist()) == {2}
    segment = processor.encode(user(video(clip, video_start=1.0, video_end=2.5)))
    assert processor.decode(segment.token_ids).count("seconds>") == 2 == segment.vision.segment_ids.max()
    assert "<1.2 seconds>" in processor.decode(segment.token_ids)


def test_a_batch_mixes_everything(processor, clip, picture):
    conversations = [user("Hi"), user(video(clip), "?"), user({"type": "image", "image": picture, **BUDGET}, "?")]
    batch, rows = processor(conversations), [processor.encode(one) for one in conversations]
    for row, encoded in enumerate(rows):
        length = len(encoded.token_ids)
        np.testing.assert_array_equal(batch.token_ids[row, :length], encoded.token_ids)
        assert (batch.token_ids[row, length:] == processor.pad_token_id).all()
    slots = batch.vision_index[batch.vision_index >= 0]
    np.testing.assert_array_equal(slots, np.arange(len(slots)))
    assert batch.vision.patches.shape[0] in (64, 96, 128, 192)


def test_special_tokens(processor):
    tokens = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert list(processor.eos_token_ids) == tokens
    assert processor.pad_token_id == tokens[1]
    ids = processor.tokenizer("\\boxed{A}<think>so</think><|im_end|>")["input_ids"]
    assert processor.decode(np.array(ids)) == "\\boxed{A}<think>so</think>"
    assert processor.decode(ids, skip_special=False).endswith("<|im_end|>")


def test_tags_are_text_and_ends_are_not_whatever_the_tokenizer_says_of_them(checkpoint, tmp_path):
    """Another checkpoint's tokenizer: its tags are special tokens, and it ends texts with an ordinary one too."""
    folder = Path(shutil.copytree(checkpoint("qwen3_vl"), tmp_path / "other"))
    facts = json.loads((folder / "tokenizer.json").read_text())
    for token in facts["added_tokens"]:
        token["special"] |= token["content"] in ("<think>", "</think>")
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    end = load_processor(folder).tokenizer.convert_tokens_to_ids("<tool_call>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    processor, text = load_processor(folder), "\\boxed{A}<think>r</think>\\boxed{A}"
    ids = processor.tokenizer(f"{text}<|im_start|><|im_end|><tool_call>")["input_ids"]
    assert processor.decode(ids) == text and end in processor.eos_token_ids
    assert processor.decode(ids, skip_special=False) == f"{text}<|im_start|><|im_end|><tool_call>"


def test_a_visual_is_decoded_once_until_its_file_changes(qwen_folder, tmp_path, write_clip, monkeypatch):
    path, processor, opened = write_clip(tmp_path / "c.mp4", frames=8), load_processor(qwen_folder), []
    real = visuals.VideoReader
    monkeypatch.setitem(visuals.READERS, "pyav", lambda *a: opened.append(a) or real(*a))
    first = processor.encode(user(video(path), "How many?"))
    second = processor.encode(user(video(path), "Which colour?"))
    np.testing.assert_array_equal(first.vision.patches, second.vision.patches)
    assert len(opened) == 1
    processor.encode(user(video(path, max_frames=4), "How many?"))
    assert len(opened) == 2
    write_clip(path, frames=20)
    assert len(processor.encode(user(video(path), "How many?")).token_ids) > 0
    assert len(opened) == 3
    assert load_processor(qwen_folder, cache_bytes=0).encode(user(video(path))).vision is not None


def test_it_travels_to_workers(processor, clip):
    messages = user(video(clip), "?")
    copy = pickle.loads(pickle.dumps(processor))
    np.testing.assert_array_equal(copy.encode(messages).token_ids, processor.encode(messages).token_ids)


def test_it_needs_no_torch_and_no_device(qwen_folder, clip):
    # Where torch is installed transformers imports it: hide it, so that only what really needs it fails.
    code = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *a: None if name.partition(".")[0] == "torch" else find(name, *a))
from videoauto_jax.data.processor import load_processor
content = [{{"type": "video", "video": {clip!r}, "max_pixels": 4096}}]
load_processor({str(qwen_folder)!r})([[{{"role": "user", "content": content}}]])
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bad_messages_are_named(processor, qwen_folder, clip, tmp_path):
    for messages in ([{"role": "user"}], ["hi"], [{"role": "user", "content": ["hi"]}], user({"type": "text"})):
        with pytest.raises(DataError, match="neither text nor a visual|not a chat message"):
            processor.encode(messages)
    with pytest.raises(DataError, match="without messages"):
        processor.encode([])
    strict = load_processor(qwen_folder)
    strict.chat_template = "{% for x in %}"
    with pytest.raises(ModelError, match="template is broken, line 1: .*Restore the checkpoint's chat_template.jinja"):
        strict.encode(user("Hi"))
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses the messages: roles must alternate"):
        strict.encode(user("Hi"))
    with pytest.raises(DataError, match=r"reserved token <\|video_pad\|>"):
        processor.encode(user("a <|video_pad|> b"))
    with pytest.raises(DataError, match="video without a source"):
        processor.encode(user({"type": "video"}))
    with pytest.raises(DataError, match="cannot be given as int"):
        processor.encode(user({"type": "video", "video": 3}))
    with pytest.raises(MediaError, match="video not found .*nowhere.mp4"):
        processor.encode(user(video(str(tmp_path / "nowhere.mp4"))))
    with pytest.raises(MediaError, match="segment from 9 s to 10 s"):
        processor.encode(user(video(clip, video_start=9, video_end=10)))
    with pytest.raises(MediaError, match="no frame"):
        processor.encode(user({"type": "video", "video": []}))
    with pytest.raises(DataError, match=r"a prompt has \d+ tokens .*20 are allowed .*a\.mp4"):
        load_processor(qwen_folder, max_prompt_tokens=20).encode(user(video(clip)))
    with pytest.raises(ConfigError, match="video_prompt='middle' .*inner, outer"):
        load_processor(qwen_folder, video_prompt="middle")


def test_bad_folders_are_named(qwen_folder, tmp_path):
    with pytest.raises(ModelError, match="no such checkpoint folder"):
        load_processor(tmp_path / "nowhere")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((qwen_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=f"no tokenizer.*{bare}"):
        load_processor(bare)
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=f"no usable tokenizer.*{bare}"):
        load_processor(bare)
    for file in qwen_folder.iterdir():
        text = file.read_text()
        (bare / file.name).write_text(text.replace("<|video_pad|>", "<|other|>") if "tokenizer" in file.name else text)
    with pytest.raises(ModelError, match=r"lacks <\|video_pad\|>"):
        load_processor(bare)
    broken = load_processor(qwen_folder)
    broken.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(ModelError, match="does not place the visuals"):
        broken.encode(user({"type": "image", "image": Image.new("RGB", (64, 64))}))


def test_a_template_named_default(qwen_folder, tmp_path):
    folder = shutil.copytree(qwen_folder, tmp_path / "copy")
    template, facts = folder / "chat_template.jinja", json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "other", "template": "no"}, {"name": "default", "template": template.read_text()}]
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"chat_template": named}))
    template.unlink()
    assert load_processor(folder).chat_template == load_processor(qwen_folder).chat_template


def test_tokens_without_an_embedding_are_named(qwen_folder, tmp_path):
    folder = shutil.copytree(qwen_folder, tmp_path / "copy")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"text_config": {"vocab_size": 300}}))
    with pytest.raises(ModelError, match=r"tokenizer has \d+ tokens, config\.json states embeddings for 300"):
        load_processor(folder)
