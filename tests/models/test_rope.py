"""M-RoPE positions against tables of transformers 4.57 and against the torch classes of transformers 5."""

import json
from pathlib import Path

import numpy as np
import pytest

from videoauto_jax.errors import DataError
from videoauto_jax.models.rope import mrope_batch, mrope_positions, next_position

CASES = json.loads((Path(__file__).parents[1] / "data" / "rope_cases.json").read_text())
ROWS = [(family, case) for family in ("qwen2_5_vl", "qwen3_vl") for case in CASES[family]]
START, END, IMAGE, VIDEO = 151652, 151653, 151655, 151656


@pytest.mark.parametrize("convention", ["upstream", "hf"])
@pytest.mark.parametrize(("family", "case"), ROWS)
def test_cases(family, case, convention):
    positions, deltas = mrope_batch(
        np.array(case["input_ids"]),
        np.array(case["attention_mask"]),
        case["image_grid_thw"],
        case["video_grid_thw"],
        family=family,
        convention=convention,
        second_per_grid=case["second_per_grid_ts"],
    )
    expected = case if convention == "upstream" else case["stock_transformers_5_23_0"]
    if expected["position_ids"] is not None:
        assert positions.tolist() == expected["position_ids"]
    assert deltas[:, None].tolist() == expected["rope_deltas"]
    assert positions.dtype == np.int32


def random_prompt(rng, family):
    """Tokens, grids in order of appearance, seconds of the videos, and 0, 1, 2 for text, image and video."""
    tokens, grids, seconds = [1], [], []
    for _ in range(rng.integers(1, 5)):
        tokens += rng.integers(2, 1000, rng.integers(0, 6)).tolist()
        height, width = (2 * rng.integers(1, 6, 2)).tolist()
        area = height * width // 4
        if rng.random() < 0.4:
            tokens += [START, *[IMAGE] * area, END]
            grids.append((1, height, width))
            continue
        time = int(rng.integers(1, 6))
        grids.append((time, height, width))
        seconds.append(float(np.float32(rng.uniform(0.2, 4))))
        blocks = [[START, *[VIDEO] * area, END]] * time
        tokens += (
            sum([[7, 8, *block] for block in blocks], [])
            if family == "qwen3_vl"
            else [START, *[VIDEO] * area * time, END]
        )
    tokens += [5, 6]
    return np.array(tokens), grids, seconds, np.select([np.array(tokens) == IMAGE, np.array(tokens) == VIDEO], [1, 2])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_random_prompts_against_torch(family):
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from transformers import Qwen2_5_VLModel, Qwen3VLModel

    oracle = {"qwen2_5_vl": Qwen2_5_VLModel, "qwen3_vl": Qwen3VLModel}[family]
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2))
    )
    model.get_vision_position_ids = oracle.get_vision_position_ids.__get__(model)
    rng = np.random.default_rng(0)
    for _ in range(40):
        tokens, grids, seconds, kinds = random_prompt(rng, family)
        first_of_visual = _kinds_of_grids(kinds, grids)
        images = [grid for grid, kind in zip(grids, first_of_visual) if kind == 1]
        videos = [grid for grid, kind in zip(grids, first_of_visual) if kind == 2]
        arguments = {"second_per_grid_ts": torch.tensor(seconds)} if family == "qwen2_5_vl" and seconds else {}
        expected, delta = oracle.get_rope_index(
            model,
            torch.tensor(tokens)[None],
            torch.tensor(kinds)[None],
            torch.tensor(images) if images else None,
            torch.tensor(videos) if videos else None,
            **arguments,
        )
        got = mrope_positions(tokens, grids, family=family, convention="hf", second_per_grid=seconds)
        np.testing.assert_array_equal(got, expected[:, 0].numpy())
        assert got.max() + 1 == len(tokens) + int(delta)


@pytest.mark.parametrize("convention", ["upstream", "hf"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_more_text_goes_on_where_the_prompt_stopped(family, convention):
    rng = np.random.default_rng(1)
    for _ in range(20):
        tokens, grids, seconds, _ = random_prompt(rng, family)
        options = {"family": family, "convention": convention, "second_per_grid": seconds}
        whole = mrope_positions(tokens, grids, **options)
        ends = np.flatnonzero((tokens[:-1] == IMAGE) | (tokens[:-1] == VIDEO) & (tokens[1:] == END))[-1:] + 1
        for length in (*ends, len(tokens) - 1, len(tokens) - 2):  # behind the last visual, and behind text
            assert next_position(whole[:, :length], convention) == whole[0, length]


def _kinds_of_grids(kinds, grids):
    slots, used, out = kinds[kinds > 0], 0, []
    for time, height, width in grids:
        out.append(slots[used])
        used += time * height * width // 4
    return out


def test_text_only_and_empty():
    np.testing.assert_array_equal(mrope_positions(np.arange(5), []), np.tile(np.arange(5), (3, 1)))
    empty = mrope_positions(np.zeros(0, int), [])
    assert empty.shape == (3, 0)
    assert next_position(empty) == 0


def test_placeholders_that_do_not_fit_are_refused():
    tokens = np.array([1, START, IMAGE, IMAGE, IMAGE, IMAGE, END])
    with pytest.raises(DataError, match="4 visual tokens belong to no visual"):
        mrope_positions(tokens, [])
    with pytest.raises(DataError, match="needs 6 tokens, 4 are left"):
        mrope_positions(tokens, [(1, 4, 6)])
    with pytest.raises(DataError, match="interrupted"):
        mrope_positions(np.array([IMAGE, IMAGE, 3, IMAGE, IMAGE]), [(1, 4, 4)])
    with pytest.raises(DataError, match="more visuals than grids"):
        mrope_batch(tokens[None], np.ones((1, 7)), [], [])


def test_families_and_conventions_by_name():
    tokens = np.array([1, START, VIDEO, END, 3, START, VIDEO, END, 4])
    dense, experts = (mrope_positions(tokens, [(2, 2, 2)], family=name) for name in ("qwen3_vl", "qwen3_vl_moe"))
    np.testing.assert_array_equal(dense, experts)
    for wrong in ({"family": "qwen2_vl"}, {"convention": "stock"}):
        with pytest.raises(DataError, match="positions of .* are not known.*Use one of"):
            mrope_positions(tokens, [(2, 2, 2)], **wrong)
