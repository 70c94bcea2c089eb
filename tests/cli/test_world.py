"""A small world on disk: complete, resumable, disjoint between splits, and right in the eyes of loaders and graders."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import av
import pytest
from PIL import Image

from videoauto_jax.cli.quickstart.demonstrations import DemonstrationMix
from videoauto_jax.cli.quickstart.scene import make_scene
from videoauto_jax.cli.quickstart.spec import WorldSpec
from videoauto_jax.cli.quickstart.world import data_sets, make_world
from videoauto_jax.data.datasets import load_datasets
from videoauto_jax.errors import ConfigError, UsageError
from videoauto_jax.rewards import score

ALWAYS_RIGHT = DemonstrationMix(perception_fallback=0.0, reasoning_fallback=0.0, reasoning_first_right=1.0, careful=1.0)
SPEC = WorldSpec(train_videos=24, heldout_videos=12, study=ALWAYS_RIGHT, warmup=ALWAYS_RIGHT)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("w") / "world"
    make_world(folder, 3, SPEC, workers=0)
    return folder


def records(world, split):
    return {file.stem: json.loads(file.read_text()) for file in (world / split).glob("*.json")}


def samples(world, split):
    sets = data_sets(world, split)
    return load_datasets(list(sets), sets, "system")


def contents(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_an_interrupted_world_is_finished_to_the_same_bytes(world, tmp_path):
    folder = tmp_path / "world"
    seen = []
    make_world(folder, 3, SPEC, workers=2, report=lambda done, total: seen.append((done, total)))
    assert contents(folder) == contents(world)
    assert seen[-1] == (36 + 5 + 1, 36 + 5 + 1)
    (folder / "videos" / "train_00003.mp4").unlink()
    (folder / "heldout" / "virl.json").unlink()
    kept = (folder / "videos" / "train_00004.mp4").stat().st_mtime_ns
    make_world(folder, 3, SPEC, workers=0)
    assert contents(folder) == contents(world)
    assert (folder / "videos" / "train_00004.mp4").stat().st_mtime_ns == kept


def test_another_seed_is_another_world_and_never_overwrites(world, tmp_path):
    make_world(tmp_path, 4, WorldSpec(train_videos=2, heldout_videos=1), workers=0)
    ours, theirs = contents(world), contents(tmp_path)
    assert ours["videos/train_00000.mp4"] != theirs["videos/train_00000.mp4"]
    with pytest.raises(UsageError, match="other settings"):
        make_world(tmp_path, 5, WorldSpec(train_videos=2, heldout_videos=1), workers=0)
    (tmp_path / "world.json").unlink()
    with pytest.raises(UsageError, match="something else"):
        make_world(tmp_path, 4, WorldSpec(train_videos=2, heldout_videos=1), workers=0)
    assert contents(tmp_path) == {name: text for name, text in theirs.items() if name != "world.json"}


def test_splits_share_no_scene_and_no_sum(world):
    scenes, sums, ids = {}, {}, []
    for split in ("train", "heldout"):
        of_split = records(world, split)
        scenes[split] = {record["scene"] for source in of_split.values() for record in source if "scene" in record}
        sums[split] = {record["prompt"] for record in of_split["dapo"]}
        ids += [record["id"] for source in of_split.values() for record in source]
    assert not scenes["train"] & scenes["heldout"] and not sums["train"] & sums["heldout"]
    assert len(scenes["train"]) == 24 + 5 and len(set(ids)) == len(ids)
    assert not {make_scene(s) for s in scenes["train"]} & {make_scene(s) for s in scenes["heldout"]}


def test_every_skill_is_asked_and_no_video_is_asked_the_same_twice(world):
    of_split = records(world, "train")
    everything = [record for source in of_split.values() for record in source]
    skills = Counter(record["tags"][1] for record in everything)
    videos = [skill for skill in skills if skill != "digits" and not skill.startswith("still")]
    assert len(videos) == 8 and sum(skills[skill] for skill in videos) == 24 * 5
    assert all(skills[skill] > 1.5 * skills["colour"] for skill in ("count", "order", "direction"))
    assert skills["digits"] == 15 and sum(skills.values()) == 24 * 5 / 0.8
    assert {record["tags"][0] for record in everything} == {"perception", "reasoning", "grounding"}


def test_media_are_what_they_claim(world):
    for record in records(world, "heldout")["videor1"]:
        scene = make_scene(record["scene"])
        with av.open(str(world / "videos" / record["path"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate, stream.pix_fmt) == ("h264", 4, "yuv420p")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == scene.seconds * 4 and frames[0].shape == (64, 64, 3)
        for second in range(scene.seconds):
            lit = frames[second * 4 + 2][0].mean() > 150
            assert lit == (scene.flash[0] <= second < scene.flash[1])
    for record in records(world, "heldout")["virl"]:
        with Image.open(world / "images" / record["image"][0]) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64))


def test_loaders_read_it_and_graders_find_the_demonstrations_right(world):
    assert len(samples(world, "heldout")) == 12 * 2 / 0.8
    trained, warmup = samples(world, "train"), samples(world, "warmup")
    assert [s.messages for s in trained] == [s.messages for s in warmup] and len(warmup) == 150
    assert all(s.response is None for s in trained)
    assert {s.problem_type for s in warmup} == {"exact_match", "math", "iou", "gqa"}
    for sample in warmup:
        full = 2.0 if sample.problem_type == "gqa" else 1.0
        assert score(sample.response, sample.answer, sample.problem_type) == (full, full, 1.0)


def test_workers_do_not_pay_for_jax():
    heavy = "{'jax', 'torch', 'transformers', 'grain'}"
    code = f"import sys, videoauto_jax.cli.quickstart.world; print({heavy} & {{*sys.modules}})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.parametrize(
    "spec, message",
    [
        (WorldSpec(heldout_skills=("colour", "colr")), "unknown skills: colr"),
        (WorldSpec(heldout_questions=9), "heldout_questions"),
        (WorldSpec(train_videos=-1), "train_videos"),
        (WorldSpec(image_share=0.6, text_share=0.4), "no part for videos"),
        (WorldSpec(size=63), "63 pixels"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(spec, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make_world(tmp_path / "world", 0, spec)
    assert not list(tmp_path.iterdir())
