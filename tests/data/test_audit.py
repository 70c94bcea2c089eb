"""The audit of a recipe's data: what it finds, that it survives bad decoders, and what training makes of it."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from videoauto_jax.cli.main import main
from videoauto_jax.config import load_config
from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.audit import audit
from videoauto_jax.data.manifest import Entry, read_manifest, sample_key
from videoauto_jax.data.selection import usable_samples
from videoauto_jax.errors import ConfigError
from videoauto_jax.train.recipe import GRPOConfig

cloudpickle = pytest.importorskip("cloudpickle")


def examine(sample, processor):
    """Some samples kill their process, one hangs."""
    if sample.answer == "die":
        os._exit(11)
    if sample.answer == "hang":
        time.sleep(60)
    return Entry(sample.id, sample_key(sample, processor), sample.media, tokens=3)


class Examine:
    """`examine` for worker processes, which cannot import a test file."""

    def __reduce__(self):
        import sys

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        return cloudpickle.loads, (cloudpickle.dumps(examine),)


def test_a_crash_or_a_hang_costs_one_sample(tiny_processor):
    answers = ["ok", "die", "ok", "hang", "ok", "die", "ok"]
    samples = [Sample([{"role": "user", "content": str(n)}], answer, "math", "toy", f"toy/{n}")
               for n, answer in enumerate(answers)]  # fmt: skip
    found = {e.id: e for e in audit(samples, tiny_processor, workers=2, timeout_s=6.0, examine=Examine())}
    reasons = {f"toy/{n}": found[f"toy/{n}"].reason for n in range(len(answers))}
    expected = {"ok": None, "die": "its process died", "hang": "it took longer than 6 s"}
    assert reasons == {f"toy/{n}": expected[answer] for n, answer in enumerate(answers)}


@pytest.fixture
def recipe(tmp_path, tiny_folder, write_clip):
    """A video, an image, a text, a long text, and a file that is no video."""
    write_clip(tmp_path / "good.mp4", frames=60)
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    shared = {"problem_type": "exact_match", "answer": "A"}
    records = [
        {"question": "What?", "video": "good.mp4"}, {"question": "What?", "image": "a.png"}, {"question": "Short"},
        {"question": "long " * 400}, {"question": "Broken?", "video": "bad.mp4"},
    ]  # fmt: skip
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(shared | record) + "\n" for record in records))
    recipe = f"""
model: {tiny_folder}
output: {tmp_path / "run"}
rounds: 1
data:
  names: [toy]
  prompt: direct
  max_prompt_tokens: 1000
  manifest: {tmp_path / "manifest.jsonl"}
  workers: 2
  sets: {{toy: {{loader: Plain, anno_path: toy.jsonl}}}}
  root: {tmp_path}
"""
    recipe = recipe.replace("anno_path: toy.jsonl", "anno_path: toy.jsonl, data_path: ''")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.replace("data_path: ''", f"data_path: {tmp_path}"))
    return path


def test_the_verb_audits_resumes_and_training_leaves_out_by_name(recipe, tmp_path, tiny_processor, caplog, capsys):
    assert main(["data", "check", "-c", str(recipe)]) == 0
    entries = {entry.id: entry for entry in read_manifest(tmp_path / "manifest.jsonl").values()}
    assert set(entries) == {f"toy/{n}" for n in range(1, 6)}
    video = entries["toy/1"]
    assert (video.frames, video.duration) == (4, 2.0) and video.patches > 0 and video.tokens > video.patches // 4
    assert entries["toy/4"].tokens > 1000 and "MediaError" in entries["toy/5"].reason
    assert "damaged toy/5" in " ".join(capsys.readouterr().out.split())

    lines = sorted((tmp_path / "manifest.jsonl").read_text().splitlines(keepends=True), key=lambda x: "MediaError" in x)
    (tmp_path / "manifest.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote
    assert main(["data", "check", "-c", str(recipe)]) == 0
    assert "2 samples read in" in capsys.readouterr().out
    assert {e.id: e for e in read_manifest(tmp_path / "manifest.jsonl").values()} == entries

    data = load_config(GRPOConfig, recipe).data
    usable, left_out = usable_samples(data, tiny_processor)
    assert [sample.id for sample in usable] == ["toy/1", "toy/2", "toy/3"]
    reasons = {one.id: one.reason for one in left_out}
    assert "tokens, max_prompt_tokens is 1000" in reasons["toy/4"] and "MediaError" in reasons["toy/5"]
    assert "toy: 2 samples left out" in caplog.text and "toy/4 (" in caplog.text and "toy/5 (" in caplog.text
    other = load_config(GRPOConfig, recipe, ["data.video.max_frames=2"]).data  # the manifest is of other budgets
    assert "toy/1" in [sample.id for sample in usable_samples(other, tiny_processor)[0]]

    shutil.copy(tmp_path / "good.mp4", tmp_path / "bad.mp4")  # what was damaged is looked at again
    assert main(["data", "check", "-c", str(recipe)]) == 0
    assert "1 samples read in" in capsys.readouterr().out
    assert "toy/5" in [sample.id for sample in usable_samples(data, tiny_processor)[0]]


def test_a_recipe_of_another_verb_is_read_but_a_wrong_key_is_not(recipe, capsys):
    assert main(["data", "check", "-c", str(recipe), "rouns=3"]) == 2
    assert "rouns" in capsys.readouterr().err
    assert main(["data", "check", "-c", str(recipe), "data.manifest="]) == 2
    assert "data.manifest" in capsys.readouterr().err
    assert main(["data", "check", "-c", str(recipe), "data.sets.toy.problem_type=exact"]) == 1
    assert "unknown problem type 'exact' (toy/1). Did you mean 'exact_match'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="rouns"):
        load_config(GRPOConfig, recipe, ["rouns=3"])
