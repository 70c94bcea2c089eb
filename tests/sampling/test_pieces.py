"""Prompts in pieces, and what two prompts share: arithmetic on the host."""

import numpy as np
import pytest

from videoauto_jax.sampling.pieces import Batch, cut
from videoauto_jax.sampling.prefixes import shared_length, trace


@pytest.fixture(scope="module")
def encode(tiny_processor):
    def make(text, *seeds):
        """A prompt about the videos of those seeds."""
        frames = [np.random.default_rng(seed).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8) for seed in seeds]
        budget = {"sample_fps": 2.0, "min_pixels": 16384, "max_pixels": 16384}
        videos = [{"type": "video", "video": list(each), **budget} for each in frames]
        return tiny_processor.encode([{"role": "user", "content": [*videos, {"type": "text", "text": text}]}])

    return make


@pytest.mark.parametrize(
    ("shared", "ends", "capacity", "most", "lengths"),
    [([0], [300], 384, 128, None), ([0, 0, 0], [64, 65, 3], 96, 128, None), ([200], [230], 256, 128, None),
     ([250], [256], 256, 8192, None), ([0, 0], [10, 320], 320, 8192, (320,)), ([70, 90], [100, 100], 100, 40, None)],
)  # fmt: skip
def test_pieces_cover_what_is_not_shared_and_stay_within(shared, ends, capacity, most, lengths):
    pieces, done = cut(shared, ends, capacity=capacity, most=most, lengths=lengths), np.array(shared)
    assert (np.sum([piece.ends for piece in pieces], axis=0) == 1).all()
    for piece in pieces:
        assert (piece.ends <= (piece.starts + piece.width >= ends)).all()
        assert (piece.starts >= 0).all() and (piece.starts + piece.width <= capacity).all()
        assert (piece.starts <= done).all()  # nothing is left out
        done = np.minimum(piece.starts + piece.width, ends)
    assert (done == ends).all() and len({piece.width for piece in pieces}) <= 2


@pytest.mark.parametrize("lengths", [(65536,), None])
def test_no_piece_is_longer_than_allowed(lengths):
    pieces = cut([0, 0], [20000, 300], capacity=65536, most=8192, lengths=lengths)
    assert [piece.width for piece in pieces][:2] == [8192, 8192] and max(piece.width for piece in pieces) == 8192


def test_prefixes_end_where_tokens_or_visuals_differ(encode):
    what, why, other = (encode(*arguments) for arguments in (("What?", 0, 1), ("Why?", 0, 1), ("What?", 2, 1)))
    size = min(len(what.token_ids), len(why.token_ids))
    differ = int((what.token_ids[:size] != why.token_ids[:size]).argmax())
    assert differ > 64 and shared_length(trace(why), trace(what)) == differ
    assert shared_length(trace(what), trace(what)) == len(what.token_ids) - 1  # one token is left to predict from
    np.testing.assert_array_equal(what.token_ids, other.token_ids)
    assert shared_length(trace(what), trace(other)) == 0  # the same tokens, but another video
    long = "A long question. " * 40
    assert shared_length(trace(encode("What? " + long, 0, 1)), trace(what)) == 0  # not worth it
    ends = [trace(encode(long + end)) for end in ("Why?", "Who?")]
    assert shared_length(*ends) > 0.9 * len(ends[0].token_ids)


def test_a_batch_carries_only_the_visuals_that_its_pieces_see(encode):
    prompts = [encode("What?", 0), encode("Why?"), encode("Who?", 1)]
    ends = [len(prompt.token_ids) for prompt in prompts]
    visual = [int((prompt.vision_index >= 0).sum()) for prompt in prompts]
    pieces = cut([0, 0, 0], ends, capacity=96, most=96, lengths=None)
    batch = Batch(prompts, pieces, 4, 0)
    inputs = batch.inputs(pieces[0])
    assert inputs.token_ids.shape == (4, pieces[0].width) and not inputs.segment_ids[3].any()
    used = [inputs.vision_index[row][inputs.vision_index[row] >= 0] for row in (0, 2)]
    assert sorted(np.concatenate(used)) == list(range(sum(visual)))
    assert (batch.vision().segment_ids > 0).sum() == 4 * sum(visual)
    behind = [len(prompts[0].token_ids) - 2]
    assert Batch(prompts[:1], cut(behind, ends[:1], capacity=512, most=96, lengths=None), 1, 0).vision() is None
