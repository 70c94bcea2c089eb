"""Miniatures of the nine benchmarks: folders as downloaded, real videos, odd rows, and what a script answers them."""

import dataclasses
import json

import numpy as np
import pytest

from videoauto_jax.eval.benchmarks import benchmark
from videoauto_jax.eval.benchmarks.base import TASK
from videoauto_jax.eval.benchmarks.mvbench import FOLDERS


@dataclasses.dataclass
class Mini:
    """A miniature.

    `tables`: file below the benchmark's folder -> rows. `said`: the first and the second answer to every row, in the
    order in which rows are read. `expected`: metrics of the modes first and second, worked out by hand.
    """

    tables: dict
    said: list
    first: dict
    second: dict
    categories: dict = dataclasses.field(default_factory=dict)


def choose(n, **fields):
    return {"question": f"What #{n}?", **fields}


def mme(n, answer, duration, video, kind="Counting Problem"):
    options = ["A. one", "B. two", "C. three", "D. four"]
    about = {"duration": duration, "domain": "Knowledge", "sub_category": "Astronomy", "task_type": kind}
    names = {"videoID": video, "video_id": f"{n:03}", "question_id": f"{n:03}-1", "url": ""}
    return choose(n, options=options, answer=answer, **about, **names)


def lvb(n, options, right, group=15):
    padded = [*options, *["N/A"] * (5 - len(options))]
    about = {"correct_choice": right, "duration_group": group, "question_category": "S2E"}
    names = {"id": f"v{n}", "video_id": f"v{n}", "video_path": f"v{n}.mp4"}
    return choose(n, **about, **names, **{f"option{k}": text for k, text in enumerate(padded)})


def mmvu(n, subject, choices, answer):
    return choose(n, choices=choices, answer=answer, id=f"validation_{n}", video_path=f"videos/{subject}/{n}.mp4")


def mmmu(n, subject, kind, options, answer, image=None):
    row = choose(n, id=f"validation_{subject}_{n}", options=options, answer=answer, question_type=kind)
    return row | ({"image": image} if image else {})


def pair(n, video, answer, as_text=False):
    candidates = ["it falls", "it stays"]
    return choose(n, candidates=str(candidates) if as_text else candidates, answer=candidates["AB".index(answer)],
                  video_id=video, video_path=f"/somethings/{video}.mp4")  # fmt: skip


def gqa(n, answer, spans):
    candidates = ["a dog", "a cat", "a cow", "a hen", "a fox"]
    row = {"video": f"{n}.mp4", "question": f"what #{n}", "candidates": candidates}
    return row | {"answer": answer, "solution": spans}


def caption(n, span, **fields):
    return {"video": f"c{n}.mp4", "caption": f"person #{n} runs.", "timestamp": span, **fields}


PICTURE = {"bytes": None, "path": "lecture.png"}
RECALLS = {"iou_0.3": 0, "iou_0.5": 0, "iou_0.7": 0, "m_iou": 0}

MINIS = {
    "videomme": Mini(
        {"videomme/test-00000-of-00001.parquet": [
            mme(0, "A", "short", "x"), mme(1, "B", "short", "x"), mme(2, "C", "medium", "y"), mme(3, "D", "long", "z"),
        ]},
        [("A", "A"), ("C", "B. two"), ("", "C"), ("Dog", "A")],
        {"videomme_perception_score": 50}, {"videomme_perception_score": 75},
        {"duration": {"long": 0, "medium": 100, "short": 100}},
    ),
    "mvbench": Mini(
        {f"json/{task}.json": [
            {"video": f"{task}.mp4", "question": f"Who #{k}?", "candidates": ["a", "b", "c"], "answer": "abc"[k % 3]}
        ] for k, task in enumerate(FOLDERS)},
        [("(A)", f"({'ABC'[k % 3]})" if k != 19 else "") for k in range(20)],
        # Seven of twenty are A; the empty box leaves its task of one without an answer, which then scores 0.
        {"mvbench_accuracy": 35}, {"mvbench_accuracy": 95},
    ),
    "longvideobench": Mini(
        {"validation-00000-of-00001.parquet": [
            lvb(0, ["x", "y"], 0), lvb(1, ["x", "y", "z", "w", "v"], 4, 3600), lvb(2, ["x", "y"], 1),
        ], "test-00000-of-00001.parquet": [lvb(9, ["x"], 0)]},
        [("A", "A"), ("B", "E"), ("A", "no idea")],  # no idea: the guess of seed 0 among two is B
        {"lvb_acc": 0.33333}, {"lvb_acc": 1.0},
        {"duration, s": {"15": 100, "3600": 100}},
    ),
    "mmvu": Mini(
        {"data/validation.jsonl": [
            mmvu(0, "Art", {"A": "x", "B": "y"}, "B"), mmvu(1, "Dentistry", {"A": "x", "B": "y", "E": "z"}, "E"),
            mmvu(2, "Astrology", {"A": "x", "B": "y"}, "A"),
        ]},
        [("B", "B"), ("A", "E"), ("A", "A")],  # astrology is in no discipline and leaves the score
        {"accuracy": 50}, {"accuracy": 100},
        {"discipline": {"Healthcare": 100, "Humanities": 100}},
    ),
    "video_mmmu": Mini(
        {
            "Adaptation/test-00000-of-00001.parquet": [
                mmmu(0, "Art", "multiple-choice", ["A. x", "B. y"], "B", PICTURE),
                mmmu(1, "Math", "open", [], "1,234", PICTURE),
            ],
            "Comprehension/test-00000-of-00001.parquet": [mmmu(2, "Finance", "multiple-choice", ["x", "y"], "A")],
            "Perception/test-00000-of-00001.parquet": [
                mmmu(3, "Pharmacy", "multiple-choice", ["A. x", "B. y", "C. z"], "C"),
                mmmu(4, "Pharmacy", "multiple-choice", ["A. x", "B. y", "C. z"], "A"),
                mmmu(5, "Music", "multiple-choice", ["A. x", "B. y"], "A"),
            ],
        },
        [("A", "B"), ("It is 1234.", "1234"), ("A", "A"), ("C", "C"), ("B", "B"), ("B", "")],
        # Adaptation 1/2 -> 2/2, comprehension 1/1, perception 1/3 -> 1/2 (the empty box is dropped).
        {"mmmu_acc": (0.5 + 1 + 0.33333) / 3}, {"mmmu_acc": (1 + 1 + 0.5) / 3},
        {"track": {"adaptation": 100, "comprehension": 100, "perception": 50}},
    ),
    "mvp_mini": Mini(
        {f"{task}/mini-00000-of-00001.parquet": [
            pair(2 * k, f"{task}_0", "A", as_text=k == 0), pair(2 * k + 1, f"{task}_1", "B", as_text=k == 0),
        ] for k, task in enumerate(benchmark("mvp_mini").tasks)},
        [("Answer: A", "Answer: A")] * 2 + [("Answer: A", "Answer: A"), ("Answer: A", "Answer: B")]
        + [("Answer: B", "Answer: A"), ("Answer: A", "Answer: B")] * 2,
        {"pair_accuracy": 0, "single_accuracy": 25}, {"pair_accuracy": 75, "single_accuracy": 87.5},
    ),
    "charades": Mini(
        {"data/test-00000-of-00001.parquet": [caption(0, [1.0, 3.0]), caption(1, [0.0, 4.0]), caption(2, [2.0, 4.0])]},
        [("[1.0, 3.0]", "[1.0, 2.0]"), ("[0.0, 1.0]", "from 0 to 4"), ("soon", "[3.5, 4.0]")],
        RECALLS | {"iou_0.3": 100 / 3, "iou_0.5": 100 / 3, "iou_0.7": 100 / 3, "m_iou": 100 * 1.25 / 3},
        {"iou_0.3": 200 / 3, "iou_0.5": 200 / 3, "iou_0.7": 100 / 3, "m_iou": 100 * 1.75 / 3},
    ),
    "activitynet_tvg": Mini(
        {"test.json": [caption(0, [1, 3]), caption(1, [0.5, 2.5])]},
        [("[1.0, 3.0]", "[1.0, 3.0]"), ("[4.0, 9.0]", "[2.5, 0.5]")],
        {"iou_0.3": 50, "iou_0.5": 50, "iou_0.7": 50, "m_iou": 50},
        {"iou_0.3": 100, "iou_0.5": 100, "iou_0.7": 100, "m_iou": 100},
    ),
    "nextgqa": Mini(
        {"test.parquet": [gqa(0, "a cat", [[1.0, 2.0], [3.0, 4.0]]), gqa(1, "a fox", [[0.0, 2.0]])]},
        [("B <> [3.0, 4.0]", "A <> [1.0, 2.0]"), ("E", "E <> [0.0, 1.0]")],
        RECALLS | {"accuracy": 100, "iou_0.3": 50, "iou_0.5": 50, "iou_0.7": 50, "m_iou": 50},
        {"accuracy": 50, "iou_0.3": 100, "iou_0.5": 100, "iou_0.7": 50, "m_iou": 75},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory):
    """A folder with all miniatures under their published names, every video in its place."""
    root = tmp_path_factory.mktemp("benchmarks")
    clip = write_clip(root / "clip.mp4").read_bytes()
    for name, mini in MINIS.items():
        chosen = benchmark(name)
        for table, rows in mini.tables.items():
            write_table(root / chosen.folder / table, rows)
            task = next((task for task in chosen.tasks if task and task in table), "")
            for row in rows:
                places = chosen.media(row | ({TASK: task} if task else {}))
                place = root / chosen.folder / (places[2] if row.get("videoID") == "z" else places[0])
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(clip)
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 30, 30)).save(root / "video_mmmu" / "lecture.png")
    return root


@pytest.fixture(scope="session")
def minis():
    return MINIS


def write_table(path, rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_clip(path, seconds=2, fps=4, size=(48, 64)):
    """Eight grey frames, one brighter than the other."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for n in range(seconds * fps):
            picture = np.full((*size, 3), 20 * n, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path
