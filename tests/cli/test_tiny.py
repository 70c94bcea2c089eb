"""The tiny model's start: what its mergers say about pictures of a world."""

import numpy as np
import pytest

from videoauto_jax.cli.quickstart.scene import make_scene, render_still
from videoauto_jax.cli.quickstart.tiny import TinySpec, make_checkpoint
from videoauto_jax.data.patches import pack_frames
from videoauto_jax.models.hf import load_model


@pytest.mark.parametrize("seed", [0, 7])
def test_pictures_start_out_as_different_as_words(seed, tmp_path):
    make_checkpoint(tmp_path, ["List the lamp. 0 red; 1 blue"], seed, TinySpec())
    model = load_model(tmp_path, None, "float32", param_dtype="float32")
    frames = np.stack([render_still(make_scene(i), 0, 32) for i in range(200)])
    fresh = model.merge_vision(model.encode_vision(pack_frames(np.repeat(frames, 2, axis=0), 16, 4)))
    for said in (fresh.slots, fresh.deepstack[0]):
        # Scenes that the start has not seen: close to zero mean and unit size, as the embeddings of words are.
        assert np.abs(np.mean(said, axis=0)).mean() < 0.35
        assert 0.8 < np.std(said, axis=0).mean() < 1.2
