"""The quickstart's tokenizer: Qwen's kind, learnt from a small world, loaded from its folder alone."""

import pytest
from transformers import AutoTokenizer

from videoauto_jax.cli.quickstart.spec import WorldSpec
from videoauto_jax.cli.quickstart.tokenizer import ORDINARY, SPECIAL, make_tokenizer, world_texts
from videoauto_jax.cli.quickstart.world import make_world
from videoauto_jax.errors import DataError
from videoauto_jax.protocol import system_prompt


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("w") / "world"
    make_world(folder, 0, WorldSpec(train_videos=60, heldout_videos=1), workers=0)
    return list(world_texts(folder))


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, texts)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer, text):
    return [tokenizer.decode([index]) for index in tokenizer(text)["input_ids"]]


def test_learning_does_not_depend_on_the_order_of_texts(texts, folder, tmp_path):
    make_tokenizer(tmp_path, reversed(texts))
    names = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja")
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_every_text_survives(texts, tokenizer):
    for text in [*texts, "你好 🙂 naïve\n\n\t<|im_start|>x<|im_end|>  12,345.67"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_added_tokens_follow_the_vocabulary_in_qwen_order(tokenizer):
    base = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    order = SPECIAL + ORDINARY
    assert tokenizer.convert_tokens_to_ids(list(order)) == list(range(base, base + len(order)))
    assert len(tokenizer) == base + len(order) and 256 < base <= 1000
    # The distances of the released Qwen3 ids, 151643 being <|endoftext|>.
    qwen = {"<|im_end|>": 151645, "<|vision_start|>": 151652, "<|image_pad|>": 151655, "<|video_pad|>": 151656}
    qwen |= {"<think>": 151667, "</think>": 151668}
    assert {name: tokenizer.convert_tokens_to_ids(name) - base + 151643 for name in qwen} == qwen
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_thoughts_survive_decoding_and_specials_do_not(tokenizer):
    ids = tokenizer("<think>So B.</think>\\boxed{B}<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>So B.</think>\\boxed{B}"


def test_boxes_and_digits_split_as_in_qwen(tokenizer):
    assert pieces(tokenizer, "\\boxed{B}<think>") == ["\\", "boxed", "{", "B", "}", "<think>"]
    assert pieces(tokenizer, "{red}") == ["{", "red", "}"]
    assert pieces(tokenizer, "total 30") == [*pieces(tokenizer, "total"), " ", "3", "0"]
    assert len(pieces(tokenizer, system_prompt())) < 135  # a word, a token; Qwen3 needs 116


def test_chat_is_rendered_as_qwen3_vl_does(tokenizer):
    video, image, text = {"type": "video", "video": "v.mp4"}, {"type": "image"}, {"type": "text", "text": "Why?\n"}
    messages = [{"role": "system", "content": "Help.\n"}, {"role": "user", "content": [video, image, text]}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == (
        "<|im_start|>system\nHelp.\n<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
        "<|vision_start|><|image_pad|><|vision_end|>Why?\n<|im_end|>\n<|im_start|>assistant\n"
    )
    answered = [*messages, {"role": "assistant", "content": "B"}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole == asked + "B<|im_end|>\n"


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no text"):
        make_tokenizer(tmp_path, ["", "<think>"])
