"""The arithmetic of visuals against tables executed with qwen-vl-utils 0.0.14, and its properties."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoauto_jax.data.vision import frame_count, frame_range, plan_frames, plan_image, plan_video, smart_resize
from videoauto_jax.errors import DataError, MediaError

CASES = json.loads((Path(__file__).parent / "vision_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["smart_resize"])
def test_smart_resize(case):
    arguments = [case[key] for key in ("h", "w", "factor", "min_pixels", "max_pixels")]
    if isinstance(case["out"], dict):
        with pytest.raises(MediaError, match="aspect ratio"):
            smart_resize(*arguments)
    else:
        assert list(smart_resize(*arguments)) == case["out"]


@pytest.mark.parametrize("case", CASES["smart_nframes"])
def test_frame_count(case):
    assert frame_count(case["ele"], case["total_frames"], case["video_fps"]) == case["out"]


@pytest.mark.parametrize("case", CASES["frame_range"])
def test_frame_range(case):
    arguments = case["ele"], case["total_frames"], case["video_fps"]
    if isinstance(case["out"], dict):
        with pytest.raises(MediaError, match="segment from 5.0 s to"):
            frame_range(*arguments)
    else:
        assert list(frame_range(*arguments)) == case["out"]


@pytest.mark.parametrize("case", CASES["video_plan"])
def test_plan_video(case):
    plan = plan_video(*(case[key] for key in ("total_frames", "fps", "h", "w", "ele", "patch_size")))
    assert len(plan.indices) == case["nframes"]
    assert list(plan.indices[:8]) == case["indices_first8"]
    assert list(plan.indices[-4:]) == case["indices_last4"]
    assert plan.sample_fps == case["sample_fps"]
    assert plan.second_per_grid == case["second_per_grid_ts(2/sample_fps)"]
    assert plan.max_pixels == case["max_pixels_effective"]
    assert [plan.height, plan.width] == case["resized"]
    assert list(plan.grid) == case["grid_thw"]
    assert plan.tokens == case["llm_tokens_total"]
    assert plan.tokens == plan.grid[0] * case["llm_tokens_per_temporal_patch"]
    stamps = [f"<{seconds:.1f} seconds>" for seconds in plan.timestamps]
    assert stamps[:4] == case["qwen3_timestamps_first4"][: len(stamps)]
    assert stamps[-1] == case["qwen3_timestamp_last"]


@pytest.mark.parametrize("case", CASES["image_plan"])
def test_plan_image(case):
    area = (2 * case["patch"]) ** 2
    visual = {"min_pixels": 4 * area, "max_pixels": 768 * area}
    plan = plan_image(case["h"], case["w"], visual, patch_size=case["patch"])
    assert [plan.width, plan.height] == case["resized_w_h"]
    assert plan.tokens == case["tokens"]


def test_an_image_is_enlarged_as_by_the_hf_processor():
    row = "qwen3_image_64x96_with_resize(vLLM-side default if size.shortest_edge=65536)"
    plan = plan_image(64, 96, {"min_pixels": 65536}, patch_size=16)
    assert [list(plan.grid)] == CASES["hf_processors_4_57_1"][row]["grid_thw"]


@settings(deadline=None)
@given(st.integers(2, 100_000), st.integers(0, 100_000), st.integers(1, 400))
def test_indices_are_those_of_torch(last, first, pairs):
    torch = pytest.importorskip("torch")
    first, last = sorted((first, last))
    count = min(2 * pairs, (last - first + 1) // 2 * 2)
    if count < 2:
        return
    visual = {"video_start": first / 10, "nframes": count}
    plan = plan_video(last + 1, 10.0, 64, 64, visual)
    start = frame_range(visual, last + 1, 10.0)[0]
    assert list(plan.indices) == torch.linspace(start, last, count).round().long().tolist()


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([28, 32]), st.integers(64, 4000))
def test_a_plan_stays_within_its_budget(height, width, factor, tokens):
    if max(height, width) > 20 * min(height, width):
        return
    out = smart_resize(height, width, factor, 4 * factor**2, tokens * factor**2)
    assert all(side % factor == 0 and side > 0 for side in out)
    assert out[0] * out[1] <= tokens * factor**2


def test_a_list_of_frames():
    plan = plan_frames(5, 64, 96, {"min_pixels": 1024, "max_pixels": 64 * 96, "sample_fps": 1.0, "raw_fps": 2.0})
    assert plan.indices == (0, 1, 2, 3, 4, 5)
    assert plan.grid == (3, 4, 6)
    assert plan.tokens == 18
    assert plan.timestamps == (0.25, 1.25, 2.25)
    assert plan.sample_fps == 1.0
    with pytest.raises(MediaError, match="no frame"):
        plan_frames(0, 64, 64)


def test_no_fewest_frames():
    assert frame_count({"min_frames": 0, "fps": 0.1}, 600, 30.0) == 2
    assert frame_count({"min_frames": 0, "fps": 1}, 300, 30.0) == 10
    with pytest.raises(DataError, match="min_frames=-2 is not a positive number"):
        frame_count({"min_frames": -2}, 600, 30.0)


def test_bad_plans_are_named():
    with pytest.raises(MediaError, match="cannot sample 0 frames from 1"):
        plan_video(1, 30.0, 64, 64)
    with pytest.raises(MediaError, match="cannot sample 12 frames from 10"):
        frame_count({"nframes": 12}, 10, 30.0)
    with pytest.raises(MediaError, match="cannot sample .* frames from 10"):
        frame_count({"nframes": float("inf")}, 10, 30.0)
    assert frame_count({"min_frames": float("inf")}, 11, 30.0) == 10
    with pytest.raises(DataError, match="both nframes and fps"):
        frame_count({"nframes": 4, "fps": 2.0}, 100, 30.0)
    with pytest.raises(DataError, match="video_start='0:10'"):
        frame_range({"video_start": "0:10"}, 100, 30.0)
    with pytest.raises(DataError, match="fps=-1"):
        frame_count({"fps": -1, "video": "a.mp4"}, 100, 30.0)
    for frames, rate in ((0, 30.0), (-1, 30.0), (100, 0.0), (100, -1.0), (100, float("nan"))):
        for plan in (frame_range, lambda visual, *clock: plan_video(*clock, 64, 64, visual)):
            with pytest.raises(MediaError, match=rf"{frames} frames at {rate} .*cannot be sampled \(a\.mp4\)"):
                plan({"video": "a.mp4"}, frames, rate)
    with pytest.raises(MediaError, match="100 frames at 0 frames per second"):
        frame_count({}, 100, 0)
    with pytest.raises(MediaError, match="max_pixels=0 leaves no pixel"):
        smart_resize(64, 64, 28, 0, 0)
    with pytest.raises(MediaError, match="max_pixels=100 is below min_pixels=4096"):
        plan_image(64, 64, {"max_pixels": 100})
    with pytest.raises(MediaError, match=r"leaves no patch .*long\.png"):
        plan_image(20, 3900, {"image": "long.png", "min_pixels": 1, "max_pixels": 4096})
    with pytest.raises(MediaError, match=r"exceeds 200 \(wide\.png\)"):
        plan_image(10, 2010, {"image": "wide.png"})
