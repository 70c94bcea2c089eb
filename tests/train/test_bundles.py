"""Supervised rows: what conversations about one visual share is computed once, and only demonstrations are learned."""

import dataclasses
import pickle

import numpy as np
import pytest

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.processor import load_processor
from videoauto_jax.data.stream import PromptStream, StreamConfig
from videoauto_jax.errors import DataError
from videoauto_jax.train.bundles import BundleEncoder, cut, make_bundles, pack_bundles, with_targets

RNG = np.random.default_rng(0)
SYSTEM = "Answer twice."


@pytest.fixture(scope="module")
def frames():
    return RNG.integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)


def sample(question, response="\\boxed{A}", visual=None, number=0):
    content = [*([visual] if visual else []), {"type": "text", "text": question}]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    return Sample(messages, "A", "exact_match", "toy", f"toy/{number}", response=response)


def video(path):
    return {"type": "video", "video": path, "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}


class Opener:
    """A processor for which `a.mp4` and `b.mp4` are the two clips."""

    def __init__(self, processor, frames):
        self.processor, self.clips = processor, {"a.mp4": frames[0], "b.mp4": frames[1]}
        self.tokenizer, self.eos_token_ids = processor.tokenizer, processor.eos_token_ids

    def encode(self, messages):
        opened = [{**message, "content": self._open(message["content"])} for message in messages]
        return self.processor.encode(opened)

    def _open(self, content):
        if isinstance(content, str):
            return content
        return [{**part, "video": list(self.clips[part["video"]])} if "video" in part else part for part in content]


@pytest.fixture(scope="module")
def opener(tiny_processor, frames):
    return Opener(tiny_processor, frames)


def test_samples_are_bundled_by_what_stands_before_the_question():
    visuals = ["a.mp4", "b.mp4", "a.mp4", None, "a.mp4", None]
    samples = [sample(f"Q{n}", visual=v and video(v), number=n) for n, v in enumerate(visuals)]
    bundles = make_bundles(samples, 2)
    assert [bundle.id for bundle in bundles] == ["toy/0+toy/2", "toy/4", "toy/1", "toy/3+toy/5"]
    assert [bundle.media for bundle in bundles] == ["a.mp4", "a.mp4", "b.mp4", None]
    with pytest.raises(DataError, match="no demonstration") as raised:
        make_bundles([sample("Q", response=None, number=7)], 2)
    assert "toy/7" in str(raised.value)


@pytest.mark.parametrize(("target", "form"), [("answer", "{}"), ("boxed", "\\boxed{{{}}}")])
def test_answers_become_demonstrations_and_missing_ones_are_named(target, form):
    truths = ["A", None, 7, " ", [1.0, 2.55], {"answer": "B", "segment": [[3, 4]]}]
    samples = [dataclasses.replace(sample("Q", number=n), answer=truth) for n, truth in enumerate(truths)]
    found, nothing = with_targets(samples, target)
    texts = ["A", "7", "[1.0, 2.5]", "B <> [3.0, 4.0]"]
    assert [one.response for one in found] == [form.format(text) for text in texts]
    assert [one.id for one in nothing] == ["toy/1", "toy/3"] and "no answer to learn" in nothing[0].reason
    assert with_targets(samples, "response") == (samples, [])


@pytest.mark.parametrize("visual", ["a.mp4", None])
@pytest.mark.parametrize("questions", [("Why?", "What happens in the video?", "Why not?"), ("Why?",), ("Why?", "Why?")])
def test_prefix_and_branch_make_each_conversation(opener, visual, questions):
    samples = [sample(q, f"\\boxed{{{q}}}", visual and video(visual)) for q in questions]
    (bundle,) = make_bundles(samples, 8)
    row = BundleEncoder(opener, 400).encode(bundle.messages)
    eos = opener.eos_token_ids[0]
    for one, branch, question in zip(samples, row.branches, row.question_tokens, strict=True):
        whole = opener.encode(one.messages)
        answer = opener.tokenizer(one.response)["input_ids"]
        assert [*row.prefix.token_ids, *branch] == [*whole.token_ids, *answer, eos]
        assert question == len(whole.token_ids) - len(row.prefix.token_ids) > 0
        shared = len(row.prefix.token_ids)
        np.testing.assert_array_equal(row.prefix.positions, whole.positions[:, :shared])
        np.testing.assert_array_equal(row.prefix.vision_index, whole.vision_index[:shared])
        # The branch continues where the prefix ends, on all three axes.
        steps = row.prefix.next_position + np.arange(question)
        np.testing.assert_array_equal(whole.positions[:, shared:], np.stack([steps] * 3))
    assert (row.prefix.vision is None) == (visual is None)
    if len(set(questions)) > 1:  # nothing that they share is left to the branches
        assert len({int(branch[0]) for branch in row.branches}) > 1


def test_a_branch_goes_on_behind_a_video_that_reached_further_than_the_text(checkpoint):
    frames = list(np.random.default_rng(0).integers(0, 256, (12, 56, 56, 3), dtype=np.uint8))
    slow = {"type": "video", "video": frames, "sample_fps": 0.3, "min_pixels": 3136, "max_pixels": 3136}
    for convention in ("upstream", "hf"):
        processor = load_processor(checkpoint("qwen2_5_vl"), position_convention=convention)
        whole = processor.encode(sample("Why?", "A", slow).messages)
        begin = int(np.flatnonzero(whole.vision_index >= 0)[-1]) + 2
        assert cut(whole, begin).next_position == whole.positions[0, begin]


def test_only_demonstrations_weigh(opener, tiny_processor):
    samples = [sample("Why?", "\\boxed{A}"), sample("What is it?", "\\boxed{BB}")]
    rows = [BundleEncoder(opener, 300).encode(bundle.messages) for bundle in make_bundles(samples, 2)]
    rows += [BundleEncoder(opener, 300).encode(make_bundles([sample("Q", visual=video("b.mp4"))], 2)[0].messages)]
    batch, weights = pack_bundles(tiny_processor, rows, bound=300, count=2)
    eos = opener.eos_token_ids[0]
    for b, g, text in ((0, 0, "\\boxed{A}"), (0, 1, "\\boxed{BB}"), (1, 0, "\\boxed{A}")):
        kept = batch.targets[b][batch.place[b, g]][weights[b, g] > 0]
        assert kept.tolist() == [*opener.tokenizer(text)["input_ids"], eos]
        assert set(np.unique(weights[b, g])) == {0.0, 1.0}
    assert not weights[1, 1].any() and (weights <= batch.mask).all()
    assert batch.inputs.vision is not None and batch.mask.shape == weights.shape == (2, 2, 300)


def test_a_demonstration_that_is_too_long_is_named(opener):
    (bundle,) = make_bundles([sample("Why?", "because " * 50), sample("What?")], 2)
    with pytest.raises(DataError, match="311 tokens, the limit is 150"):
        BundleEncoder(opener, 150).encode(bundle.messages)


def test_the_prompt_stream_takes_bundles(opener, tiny_processor):
    samples = [sample(f"Question {n}?", f"\\boxed{{{n}}}", number=n) for n in range(8)]
    bundles, encoder = make_bundles(samples, 2), BundleEncoder(tiny_processor, 200)
    config = StreamConfig(2, seed=1, workers=0)
    first = PromptStream(bundles, encoder, config)
    batches = [next(first) for _ in range(3)]
    again = PromptStream(bundles, pickle.loads(pickle.dumps(encoder)), config)
    next(again)
    state = again.state()
    resumed = PromptStream(bundles, encoder, config)
    resumed.restore(state)
    for batch in batches[1:]:
        for (index, one, row), (other_index, _, other) in zip(batch, next(resumed)):
            assert index == other_index and len(row.branches) == len(one.messages[0]["conversations"]) == 2
            np.testing.assert_array_equal(row.branches[1], other.branches[1])
