"""Every loader against what upstream's loaders return for the same annotations."""

import json
from pathlib import Path

import pytest

from videoauto_jax.data.annotations import VideoBudget
from videoauto_jax.data.datasets import DatasetConfig, dataset, load_datasets, loaders
from videoauto_jax.data.datasets.image import boxed_content
from videoauto_jax.data.datasets.video import tagged_answer
from videoauto_jax.errors import ConfigError, DataError

CASES = json.loads((Path(__file__).parent / "data_cases.json").read_text())
SETS = [name for name in CASES if not name.startswith("_")]


@pytest.fixture
def rooted(tmp_path):
    """Places the cases under a folder, with the media that upstream found and without those it missed."""
    return json.loads(json.dumps(CASES).replace("ROOT", str(tmp_path)))


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def place(case: dict) -> DatasetConfig:
    config = DatasetConfig(anno_path=case["config"]["anno_path"], data_path=case["config"]["data_path"])
    files = case["annotations"] if isinstance(case["annotations"], dict) else {"": case["annotations"]}
    for name, annotations in files.items():
        write(Path(config.anno_path, name), annotations)
    for item in case["items"]:
        if (visual := item["user_content"][0])["type"] != "text":
            path = Path(visual[visual["type"]])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return config


@pytest.mark.parametrize("name", SETS)
def test_loader_agrees_with_upstream(rooted, name):
    case = rooted[name]
    samples = load_datasets([name], {name: place(case)}, "the system prompt")
    found = [(s.messages[1]["content"], s.answer, s.problem_type) for s in samples]
    expected = [(i["user_content"], i["response"], i["problem_type"]) for i in case["items"]]
    # The files of a directory come in the order of their names, not in that of the file system.
    assert found == (sorted(expected, key=str) if name == "TVBench" else expected)
    assert all(s.messages[0] == {"role": "system", "content": "the system prompt"} for s in samples)
    assert {s.source for s in samples} == {name} and len({s.id for s in samples}) == len(samples)


@pytest.mark.parametrize(
    ("name", "change", "path", "text"),
    [
        ("VideoR1", {"path": "../up.png", "data_type": "image", "options": []}, "up.png", "What happens?Options:\n"),
        ("VIRL", {"image": ["sub/../a.jpg"]}, "m/sub/../a.jpg", "How many?"),
        ("MMR-VBench", {"options": ["", ""]}, "v/x.mp4", "Why?\nOptions:\n"),
        ("CG-Bench", {"choices": []}, None, "\nOptions:\n"),
        ("CG-Bench", {"choices": [3, 4.5, "x"]}, None, "\nOptions:\nA. 3\nB. 4.5\nC. x"),
        ("TVBench", {"candidates": [3, 1.0], "answer": 1}, None, "\nA. 3\nB. 1.0\n"),
    ],
)
def test_odd_records_as_upstream_reads_them(rooted, tmp_path, name, change, path, text):
    case = rooted[name]
    annotations = case["annotations"]
    (annotations["action_sequence.json"] if name == "TVBench" else annotations)[0] |= change
    sample = load_datasets([name], {name: place(case)}, None, keep_missing=True)[0]
    assert sample.messages[0]["content"][1]["text"].endswith(text + "\nPut your final answer in \\boxed{}.")
    assert path is None or sample.media == f"{tmp_path}/{path}"
    assert name != "TVBench" or sample.answer == "B"


def test_fixed_frame_count_replaces_the_rate(rooted):
    video = VideoBudget(nframes=32)
    samples = load_datasets(["VideoR1"], {"VideoR1": place(rooted["VideoR1"])}, None, video=video)
    assert samples[0].messages[0]["content"][0] == rooted["_nframes_32_variant"]


@pytest.mark.parametrize("row", CASES["_extract_answer"], ids=str)
def test_tagged_answer(row):
    assert tagged_answer(row["in"]) == row["out"]


@pytest.mark.parametrize("row", CASES["_extract_boxed_content"], ids=str)
def test_boxed_content(row):
    assert boxed_content(row["in"]) == row["out"]


def test_sets_come_in_the_order_asked(rooted):
    configs = {name: place(rooted[name]) for name in ("DAPO-Math", "TimeR1", "VIRL")}
    samples = load_datasets(["TimeR1", "DAPO-Math"], configs, None)
    assert [sample.source for sample in samples] == ["TimeR1", "DAPO-Math", "DAPO-Math"]
    assert [sample.id for sample in samples] == ["TimeR1/1", "DAPO-Math/1", "DAPO-Math/2"]


def test_missing_media_are_counted(rooted, caplog):
    load_datasets(["VIRL"], {"VIRL": place(rooted["VIRL"])}, None)
    assert "VIRL: 1 of 7 samples skipped" in caplog.text and "nope.jpg" in caplog.text


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="'videor1' is not configured.*VideoR1"):
        load_datasets(["videor1"], {"VideoR1": DatasetConfig(anno_path="x")}, None)
    with pytest.raises(ConfigError, match="no loader named 'TVBenh'.*TVBench"):
        load_datasets(["mine"], {"mine": DatasetConfig("TVBenh", "x")}, None)
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_datasets(["mine"], {"mine": DatasetConfig("nowhere:loader", "x")}, None)
    with pytest.raises(ConfigError, match="twice: mine"):
        load_datasets(["mine", "mine"], {"mine": DatasetConfig("Plain", "x")}, None)
    with pytest.raises(ConfigError, match="no anno_path"):
        load_datasets(["Plain"], {"Plain": DatasetConfig()}, None)
    with pytest.raises(ConfigError, match="exists already"):
        dataset("VIRL")(print)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("TVBench", {"answer": "neither"}, "'answer' must be one of the candidates.*record 1"),
        ("LongVideoReason", {"data_type": "image"}, "'data_type' must be 'video'"),
        ("VideoR1", {"data_type": "audio"}, "'data_type' must be 'video' or 'image'"),
        ("NeXT-GQA", {"timestamps": [1.0, 2.0]}, "'timestamps' must be a list of"),
        ("MMR-VBench", {"correctAnswer": "B"}, "'correctAnswer' must be"),
        ("STI-Bench", {"Candidates": ["1 m"]}, "'Candidates' must be an object"),
        ("TimeR1", {"timestamp": "3-9"}, "'timestamp' must be"),
        ("TVBench", {"candidates": [str(n) for n in range(27)], "answer": "26"}, "'candidates' must be .* 26 options"),
        ("CG-Bench", {"choices": [True]}, "'choices' must be a list of strings or numbers"),
        ("CG-Bench", {"choices": ["x"] * 27}, "'choices' must be .* at most 26 options"),
    ],
)
def test_wrong_annotation_is_one_error(rooted, name, change, message):
    case = rooted[name]
    annotations = case["annotations"]
    first = next(iter(annotations.values())) if isinstance(annotations, dict) else annotations
    first[0] |= change
    with pytest.raises(DataError, match=message):
        load_datasets([name], {name: place(case)}, None)


def test_own_data_need_no_code(tmp_path):
    rows = [
        {"question": "2+2?", "answer": "4", "problem_type": "math"},
        {"question": "Where?", "options": ["here", "there"], "answer": "B", "problem_type": "exact_match"},
        {"question": "a dog", "answer": [1, 2], "problem_type": "iou", "video": "v.mp4", "start": 1.0, "end": 9.0},
        {"question": "Who?", "options": ["me"], "answer": "A", "segments": [[1, 2]], "problem_type": "gqa"},
    ]
    write(tmp_path / "own.json", rows)
    (tmp_path / "v.mp4").touch()
    samples = load_datasets(["own"], {"own": DatasetConfig("Plain", str(tmp_path / "own.json"), str(tmp_path))}, None)
    texts = [sample.messages[0]["content"][-1]["text"] for sample in samples]
    assert texts[0] == "2+2?\nPut your final answer in \\boxed{}."
    assert texts[1] == "Where?\nOptions:\nA. here\nB. there\nPut your final answer in \\boxed{}."
    assert texts[2].startswith("Locate the start and end timestamps") and "a dog" in texts[2]
    assert texts[3].startswith("Question: Who?\nOptions:\nA. me\nPlease answer the question")
    assert samples[2].messages[0]["content"][0]["video_end"] == 9.0
    assert samples[3].answer == {"answer": "A", "segment": [[1, 2]]}


def test_own_grounding_takes_one_segment_or_several(tmp_path):
    row = {"question": "a dog", "problem_type": "iou", "video": "v.mp4"}
    sets = {"own": DatasetConfig("Plain", str(tmp_path / "own.json"))}
    write(tmp_path / "own.json", [row | {"answer": [[1, 2], [5, 6.5]]}])
    assert load_datasets(["own"], sets, None, keep_missing=True)[0].answer == [[1, 2], [5, 6.5]]
    for wrong in ("1 to 2", [], [[1]], [2, 1, 3]):
        write(tmp_path / "own.json", [row | {"answer": wrong}])
        with pytest.raises(DataError, match="'answer' must be .start, end. in seconds, or a list.*record 1"):
            load_datasets(["own"], sets, None, keep_missing=True)


def test_a_question_with_options_needs_no_problem_type(tmp_path):
    own = [
        {"video": "a.mp4", "question": "Q?", "options": ["red", "blue"], "answer": "blue"},
        {"video": "a.mp4", "question": "Q?", "options": ["red", "blue"], "answer": "A"},
        {"question": "Who?", "answer": "nobody"},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    sets = {"own": DatasetConfig("Plain", str(tmp_path / "own.jsonl"))}
    samples = load_datasets(["own"], sets, None, keep_missing=True)
    assert [sample.answer for sample in samples] == ["B", "A", "nobody"]
    assert {sample.problem_type for sample in samples} == {"exact_match"}
    assert "A. red\nB. blue" in samples[0].messages[0]["content"][1]["text"]


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"problem_type": "iou", "answer": [[1, 2], [3.5, 9]]}, [[1, 2], [3.5, 9]]),
        ({"answer": 5}, "5"),
        ({"answer": 0.00001, "problem_type": "math"}, "0.00001"),
        ({"answer": 7, "options": ["6", "7"]}, "B"),
        ({"answer": 7, "options": [6, 7]}, "B"),
        ({"answer": "(b)", "options": ["6", "7"]}, "(b)"),
        ({"answer": None, "problem_type": "my_module:grade"}, None),
    ],
)
def test_own_answers_as_graders_take_them(tmp_path, fields, answer):
    write(tmp_path / "own.json", [{"question": "Q?"} | fields])
    assert load_datasets(["own"], {"own": DatasetConfig("Plain", str(tmp_path / "own.json"))}, None)[0].answer == answer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem_type": "iou", "answer": "1-2"}, "must be .start, end. in seconds, or a list of them, not '1-2'"),
        ({"problem_type": "iou", "answer": []}, "must be .start, end. in seconds"),
        ({"answer": None}, "must be a string or a number, not None"),
        ({"answer": True}, "must be a string or a number"),
        ({"answer": "green", "options": ["red", "blue"]}, "must be the letter or the text of one of the options"),
        ({"answer": "C", "options": ["red", "blue"]}, "must be the letter or the text of one of the options"),
        ({"answer": "red", "options": ["red", "red"]}, "must be the letter or the text of one of the options"),
    ],
)
def test_own_answers_that_nothing_could_match_are_told(tmp_path, fields, message):
    write(tmp_path / "own.json", [{"question": "Q?"} | fields])
    with pytest.raises(DataError, match=f"'answer' {message}"):
        load_datasets(["own"], {"own": DatasetConfig("Plain", str(tmp_path / "own.json"))}, None)


def test_own_loader_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_sets.py").write_text(
        "def riddles(record):\n    return record.sample(record.text('riddle'), record['solution'], 'exact_match')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "riddles.json", [{"riddle": "What?", "solution": "That"}])
    config = DatasetConfig("my_sets:riddles", str(tmp_path / "riddles.json"))
    assert load_datasets(["riddles"], {"riddles": config}, None)[0].answer == "That"


def test_all_sets_of_the_paper_are_registered():
    assert set(SETS) | {"Plain"} <= set(loaders()) and len(SETS) == 13
