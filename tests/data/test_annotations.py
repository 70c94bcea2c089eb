"""Reading annotations: what is accepted, and the one line that says what is wrong."""

import json

import pytest

from videoauto_jax.data.annotations import ImageBudget, Origin, Record, VideoBudget
from videoauto_jax.data.records import read_records
from videoauto_jax.errors import DataError

ORIGIN = Origin("mine", "system", "/media", tags=("recipe",))


def record(**data):
    return Record(data, "a.json, record 1", "1", "a", ORIGIN)


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return list(read_records(path))


def test_content_decides_between_list_and_lines(tmp_path):
    rows = [{"q": "one\u2028two"}, {"q": "\\boxed{2}"}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    for name, text in [("a.json", json.dumps(rows)), ("b.json", lines), ("c.jsonl", lines)]:
        assert [row for *_, row in read(tmp_path / name, text)] == rows


def test_directory_is_read_in_order_of_names(tmp_path):
    for name in ("b.json", "a.jsonl", ".hidden"):
        (tmp_path / name).write_text(json.dumps([{"from": name}]))
    found = [(key, group, row["from"]) for _, key, group, row in read_records(tmp_path)]
    assert found == [("a/1", "a", "a.jsonl"), ("b/1", "b", "b.json")]


@pytest.mark.parametrize(
    "text, place",
    [
        ('[{"q": 1},\n {"q": }]', "a.json:2:8"),
        ('{"q": 1}\n{"q": 1}\n{"q"', "a.json:3"),
        ('[{"q": 1}, 3]', "record 2"),
        ('{"q": 1}\n3', "a.json:2"),
        ('\ufeff{"q": 1}\n{"q": }', "a.json:2:7"),
        ('\ufeff{"q": }', "a.json:1:7"),
        pytest.param('{"q": 1}\n{"q": ' + "9" * 5000 + "}", "a.json:2", id="digits"),
        pytest.param("[" * 100_000, "a.json", id="brackets"),
    ],
)
def test_broken_file_names_its_place(tmp_path, text, place):
    with pytest.raises(DataError, match=place):
        read(tmp_path / "a.json", text)


def test_unusable_paths(tmp_path):
    with pytest.raises(DataError, match="nowhere.json.*anno_path"):
        list(read_records(tmp_path / "nowhere.json"))
    with pytest.raises(DataError, match="without annotation files"):
        list(read_records(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="notes.txt"):
        list(read_records(tmp_path))
    (tmp_path / "latin.json").write_bytes(b'[{"q": "\xe9"}]')
    with pytest.raises(DataError, match="latin.json"):
        list(read_records(tmp_path / "latin.json"))


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda r: r["absent"], "'absent' is missing.*record 1.*question"),
        (lambda r: r.text("number"), "'number' must be a string, not 3"),
        (lambda r: r.texts("question"), "'question' must be a list of strings"),
        (lambda r: r.interval("points"), r"'points' must be \[start, end\]"),
        (lambda r: r.interval("endless"), r"'endless' must be \[start, end\]"),
    ],
)
def test_wrong_field_is_named(use, message):
    data = record(question="?", number=3, points=[1, 2, 3], endless=[0, float("nan")])
    with pytest.raises(DataError, match=message):
        use(data)


def test_sample_carries_tags_and_demonstration():
    sample = record(tags=["own"], response="\\boxed{5}").sample("Q?", 5, "math")
    assert (sample.id, sample.source, sample.media) == ("mine/1", "mine", None)
    assert (sample.tags, sample.response) == (("recipe", "own"), "\\boxed{5}")
    assert sample.messages == [
        {"role": "system", "content": "system"},
        {"role": "user", "content": [{"type": "text", "text": "Q?\nPut your final answer in \\boxed{}."}]},
    ]
    with pytest.raises(DataError, match="tags"):
        record(tags="own").sample("Q?", 5, "math")


def test_grounding_prompts_get_no_suffix_and_no_system_means_no_message():
    silent = Record({}, "a", "1", "a", Origin("mine", None))
    sample = silent.sample("Q?", 5, "iou", grounding=True)
    assert sample.messages == [{"role": "user", "content": [{"type": "text", "text": "Q?"}]}]


def test_visuals_carry_path_budget_and_segment():
    image = Record({}, "a", "1", "a", Origin("mine", None, "/media/", image=ImageBudget(1, 2))).image("a.jpg")
    assert image == {"type": "image", "image": "/media/a.jpg", "min_pixels": 1, "max_pixels": 2}
    budget = VideoBudget(1, 2, 3, max_frames=8, fps=1.0, min_frames=2)
    video = Record({}, "a", "1", "a", Origin("mine", None, "/media", video=budget)).video("./s/../v.mp4", 0, 2.5)
    assert video == {
        **{"type": "video", "video": "/media/v.mp4", "min_pixels": 1, "max_pixels": 2, "total_pixels": 3},
        **{"max_frames": 8, "fps": 1.0, "min_frames": 2, "video_start": 0, "video_end": 2.5},
    }
