"""Every executed row of the published extraction and scoring, and what `strict` makes of the same texts."""

import json
import pathlib

import numpy as np
import pytest

from videoauto_jax.errors import ConfigError
from videoauto_jax.eval import benchmark
from videoauto_jax.eval.benchmarks import Score, known_benchmarks
from videoauto_jax.eval.benchmarks.base import TASK
from videoauto_jax.eval.benchmarks.open_answer import open_answers, says_open_answer
from videoauto_jax.protocol.grammar import last_box_or_text

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "eval_cases.json").read_text())
SPANS = [[10, 20], [30, 40]]


def rows(name):
    return [pytest.param(row, id=str(row.get("in", row.get("pred")))) for row in CASES[name]]


@pytest.mark.parametrize("row", rows("final_boxed"))
def test_the_last_box_or_the_text(row):
    assert last_box_or_text(row["in"], "paper") == row["out"]


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("row", rows("videomme_letter"))
def test_videomme_takes_the_first_capital(row, boxed):
    assert benchmark("videomme", boxed=boxed).extract(row["in"]) == row["boxed" if boxed else "plain"]


@pytest.mark.parametrize("name", ["videomme", "mmvu", "nextgqa"])
def test_two_prefixes_count_as_one_where_commas_are_missing(name):
    assert benchmark(name).extract("Best answer:Best option: A") == "A"
    assert benchmark(name).extract("Best answer: A") == "B"


@pytest.mark.parametrize("row", rows("mmvu_letter"))
def test_mmvu_takes_the_first_capital(row):
    assert benchmark("mmvu").extract(row["in"]) == row["boxed"]


@pytest.mark.parametrize("row", rows("nextgqa_letter"))
def test_nextgqa_takes_the_first_capital(row):
    assert benchmark("nextgqa").extract(row["in"]) == row["out"]


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("row", rows("mvbench_mcq_acc"))
def test_mvbench_takes_the_first_lone_letter(row, boxed):
    record = {"candidates": ["x", "y", "z"], "answer": "xyz"["ABC".index(row["gold"])]}
    score = benchmark("mvbench", boxed=boxed).score(record, row["pred"])
    assert score == row["score_boxed" if boxed else "score_plain"]


def test_mvbench_takes_a_tab_for_a_space_before_it_looks_what_touches_one():
    record = {"candidates": ["x", "y"], "answer": "y"}
    assert benchmark("mvbench", boxed=False).score(record, "b{c\t{") == 0  # `bc`


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B.text\nmore", ""),  # `B. text` is one line; then the period goes, and `Btext` is no letter
        ("B.\ntext", "B"),
        ("." * 32 + "D.", "D"),  # the 33rd period stays, but is no letter's neighbour
        ("." * 40 + "so e.g. a", "E"),  # as do those behind it: `eg` with fewer of them
        ("so e.g. a", "A"),
        ("F", "F"),  # compared as `f`
        ("F. six", ""),
    ],
)
def test_mvbench_reads_odd_texts_as_published(said, letter):
    options = list("uvwxyz")
    mvbench = benchmark("mvbench", boxed=False)
    rows = {own: {"candidates": options, "answer": option} for own, option in zip("ABCDEF", options)}
    assert [own for own, row in rows.items() if mvbench.score(row, said)] == list(letter)


def test_published_letters_are_compared_as_they_stand():
    row = {"options": LETTERED, "answer": "A "}
    assert benchmark("videomme").score(row, "A") == 0 and benchmark("videomme", "strict").score(row, "A") == 1


@pytest.mark.parametrize("kind", ["multiple-choice", "open"])
def test_video_mmmu_takes_its_own_mark_of_an_empty_answer_for_one(kind):
    row = {"question_type": kind, "options": ["x", "y"], "answer": "A"}
    assert not benchmark("video_mmmu").score(row, "\\boxed{API Error}").counted


@pytest.mark.parametrize("row", rows("longvideobench_letter"))
def test_longvideobench_guesses_where_there_is_no_letter(row):
    record = {f"option{n}": text for n, text in enumerate(("x", "y", "N/A", "N/A", "N/A"))} | {"correct_choice": 1}
    assert benchmark("longvideobench").score(record, row["in"]).prediction == row["out_seed0"]


@pytest.mark.parametrize("row", rows("videommmu_mc"))
def test_video_mmmu_finds_an_option(row):
    assert benchmark("video_mmmu").extract(row["in"]) == row["out"]


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("I pick B from NASA tables", "B"),  # `A ` is in a word, where it counts as before everything
        ("NASA or GRAB tables", "A"),
        ("A. or B: yes", "A"),  # no `B:` is looked for where one stands as `A.`
        ("A: or B: yes", "B"),
        ("(A) or (B)", "B"),
        ("\\boxed{B,.}", "No Answer Found."),  # each mark is stripped once, in their order
        ("it must have been the apple", "No Answer Found."),  # not `A. Apple`
        ("it must be the pear, not a plum", "B"),
    ],
)
def test_video_mmmu_finds_options_as_published(said, letter):
    record = {"options": ["A. apple", "plum", "pear, not a plum"], "answer": "A", "question_type": "multiple-choice"}
    assert benchmark("video_mmmu").score(record, said).prediction == letter


@pytest.mark.parametrize("row", rows("videommmu_open"))
def test_video_mmmu_finds_numbers(row):
    said = last_box_or_text(row["in"], "paper")
    if row["parsed"] == "API Error":
        record = {"question_type": "open", "answer": "42", "options": []}
        assert not benchmark("video_mmmu").score(record, row["in"]).counted
        return
    assert sorted(map(str, open_answers(said))) == sorted(row["parsed"])
    assert {answer: says_open_answer(said, answer) for answer in row["correct_vs"]} == row["correct_vs"]


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("row", rows("mvp_extract_pred(returns idx string or false)"))
def test_mvp_reads_a_or_b(row, boxed):
    expected = row["boxed" if boxed else "plain"]
    found = benchmark("mvp_mini", boxed=boxed).extract(row["in"])
    assert found == ("AB"[int(expected)] if expected is not False else "")


@pytest.mark.parametrize("row", rows("mvp_metrics"))
def test_mvp_counts_pairs(row):
    scores = [Score(value, unit=name.rpartition("_")[0]) for name, value in row["ratings"]]
    found = benchmark("mvp").aggregate(scores)
    assert [found["single_accuracy"], found["pair_accuracy"]] == row["single_pair"]


@pytest.mark.parametrize("row", rows("grounding_iou(gt=[10,20])"))
def test_grounding_reads_a_segment(row):
    score = benchmark("charades").score({"timestamp": [10, 20]}, row["in"])
    assert [json.loads(score.prediction), float(score)] == row["pred_iou"]


@pytest.mark.parametrize("name", ["charades", "activitynet_tvg"])
def test_a_truth_that_ends_before_it_begins_overlaps_with_nothing_as_published(name):
    assert benchmark(name).score({"timestamp": [20.0, 10.0]}, "\\boxed{[10.0, 20.0]}") == 0
    assert benchmark(name).score({"timestamp": [3.0, 3.0]}, "\\boxed{[3.0, 3.0]}") == 0
    assert benchmark(name, "strict").score({"timestamp": [20.0, 10.0]}, "\\boxed{[10.0, 20.0]}") == 1


@pytest.mark.parametrize("row", rows("nextgqa(gt B, [10,20],[30,40])"))
def test_nextgqa_scores_letter_and_segment(row):
    score = benchmark("nextgqa").score({"candidates": ["x", "y"], "answer": "y", "solution": SPANS}, row["in"])
    assert [float(score), score.iou] == row["score_iou"]


LETTERED = ["A. x", "B. y", "C. z", "D. w"]
ROWS = {
    "videomme": {"question": "Q?", "options": LETTERED},
    "mvbench": {"question": "Q?", "candidates": ["x", "y"]},
    "longvideobench_val_v": {"question": "Q?", "option0": "x", "option1": "y", "option2": "N/A"},
    "mmvu_val_mc": {"question": "Q?", "choices": {"A": "x", "B": "y", "C": None}},
    "video_mmmu_adaptation_boxed_mcq": {
        "question": "Q <Image 1>?", "options": ["x", "y"], "question_type": "multiple-choice", TASK: "Adaptation",
    },
    "video_mmmu_adaptation_boxed_open_noimage": {
        "question": "Q?", "options": [], "question_type": "open", TASK: "Adaptation",
    },
    "video_mmmu_perception": {
        "question": "Q?", "options": ["A. x", "B. y"], "question_type": "perception", TASK: "Perception",
    },
    "mvp_mini": {"question": "Q?", "candidates": "['x', 'y']"},
    "charades": {"caption": "a person runs"},
    "nextgqa": {"question": "Q?", "candidates": ["x", "y"]},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES["prompts"])
def test_prompts_byte_for_byte(case):
    boxed, row = "_boxed" in case, ROWS.get(case.removesuffix("_boxed"))
    name = max((name for name in known_benchmarks() if case.startswith(name)), key=len)
    assert benchmark(name, boxed=boxed).question(row) == CASES["prompts"][case]


def test_a_choice_keeps_the_letter_it_comes_with():
    row = {"question": "Q?", "choices": {"B": "y", "A": None, "D": "w"}}
    assert benchmark("mmvu", boxed=False).question(row).startswith("Question: Q?\nOptions:\nB. y\nD. w\nAnswer with")


def test_a_row_may_lack_a_category_and_hold_arrays():
    row = {"options": LETTERED, "answer": "A", "duration": "short", "domain": None}
    videomme, mmmu = benchmark("videomme"), benchmark("video_mmmu")
    scores = [videomme.score(row, "A"), videomme.score(row | {"domain": "Sports"}, "B")]
    assert videomme.breakdown(scores)["domain"] == {"Sports": {"score": 0, "n": 1}}
    about = {"id": "dev_Art_1", "answer": "B", "question_type": "multiple-choice"}
    assert mmmu.score(about | {"options": np.array(["x", "y"])}, "B") == 1


def test_aggregation_as_published():
    expected = CASES["aggregations"]
    score = lambda name, said, row: benchmark(name).score(row, said)  # noqa: E731
    long = [Score(1), Score(1), Score(0)]
    assert benchmark("longvideobench").aggregate(long)["lvb_acc"] == expected["longvideobench(2 right of 3)"]
    row = {"candidates": ["x", "y"], "answer": "x"}
    mv = [score("mvbench", said, row) for said in ("A", "A", "B", r"\boxed{}")]
    found = benchmark("mvbench").aggregate(mv)["mvbench_accuracy"]
    assert found == expected["mvbench(2 right, 1 wrong, 1 empty pred)"]
    spans = benchmark("charades").aggregate([0.5, 0.49, 1.0])
    assert spans["iou_0.5"] == expected["charades_iou0.5([0.5,0.49,1.0])"]
    assert spans["m_iou"] == expected["charades_m_iou"]
    row = {"question_type": "multiple-choice", "options": ["x", "y"], "answer": "A"}
    mmmu = [score("video_mmmu", said, row) for said in ("A", "B", "")]
    found = benchmark("video_mmmu").aggregate(mmmu)["mmmu_acc"]
    assert found == expected["videommmu(1 right of 2, 1 API Error dropped)"]


@pytest.mark.parametrize(
    "said, letter",
    [
        (r"\boxed{A}", "A"), ("(B)", "B"), ("B.", "B"), (r"\boxed{B. Apple}", "B"), ("The answer is C", "C"),
        ("Best answer: D", "D"), ("Answer: B", "B"), (r"\boxed{\text{A}}", "A"), (r"\boxed{\mathrm{\text{C}}}", "C"),
        ("b", "B"), ("I think Apple is B", "B"), (r"\boxed{Dog}", ""), (r"\boxed{a dog}", ""), (r"\boxed{AB}", ""),
        ("C,D", ""), ("A or B", ""), (r"\boxed{}", ""), ("none of these", ""), ("A cat sits", ""), ("F", ""),
    ],
)  # fmt: skip
def test_strict_letters(said, letter):
    for name in ("videomme", "mmvu", "longvideobench", "mvbench"):
        assert benchmark(name, "strict").extract(said) == letter, name


def test_strict_knows_an_option_by_its_text_and_drops_nothing():
    row = {"candidates": ["a dog", "a cat"], "answer": "a cat"}
    mvbench = benchmark("mvbench", "strict")
    sentences = {"candidates": ["He runs.", "He sits"], "answer": "He runs."}
    assert all(mvbench.score(sentences, said) == 1 for said in ("he runs", "He runs.", "A. He runs."))
    assert (
        mvbench.score(sentences, "He sits.") == 0 and mvbench.score(sentences | {"answer": "He sits"}, "He sits.") == 1
    )
    assert mvbench.score(row, r"\boxed{A cat}") == 1 and mvbench.score(row, r"\boxed{}").counted
    scores = [mvbench.score(row, said) for said in ("B", r"\boxed{}")]
    assert mvbench.aggregate(scores)["mvbench_accuracy"] == 50
    perception = {"question_type": "perception", "options": ["x", "y"], "answer": "A"}
    assert benchmark("video_mmmu").score(perception, "A") == 0
    assert benchmark("video_mmmu", "strict").score(perception, "A") == 1
    number = {"question_type": "open", "options": [], "answer": "42"}
    assert benchmark("video_mmmu").score(number, r"\boxed{41 or 42}") == 1
    assert benchmark("video_mmmu", "strict").score(number, r"\boxed{41 or 42}") == 0
    assert benchmark("charades", "strict").score({"timestamp": [10, 20]}, "[1:10, 1:20]") == 0


def test_groups_weigh_as_published():
    of = lambda value, **groups: Score(value, groups=groups)  # noqa: E731
    mvbench = [of(1, task="a"), of(1, task="a"), of(1, task="a"), of(0, task="b")]
    assert benchmark("mvbench").aggregate(mvbench)["mvbench_accuracy"] == 75  # by size
    tracks = [of(1, track="a"), of(1, track="a"), of(1, track="a"), of(0, track="b")]
    assert benchmark("video_mmmu").aggregate(tracks)["mmmu_acc"] == 0.5  # each alike
    empty = Score(0, groups={"track": "b"}, counted=False)
    assert benchmark("video_mmmu").aggregate([*tracks[:3], empty])["mmmu_acc"] == 0.5  # a track without an answer is 0
    mmvu = benchmark("mmvu")
    row = {"answer": "A", "choices": {"A": "x"}, "video_path": "videos/Astrology/1.mp4"}
    dropped, kept = mmvu.score(row, "A"), mmvu.score(row | {"video_path": "videos/Art/1.mp4"}, "B")
    assert mmvu.aggregate([dropped, kept]) == {"accuracy": 0} and kept.groups["discipline"] == "Humanities"
    assert benchmark("mmvu", "strict").aggregate([benchmark("mmvu", "strict").score(row, "A")]) == {"accuracy": 100}


def test_breakdown_has_every_category():
    scores = [Score(1, groups={"duration": "short"}), Score(0, groups={"duration": "long"})]
    found = benchmark("videomme").breakdown(scores)
    assert found == {"duration": {"long": {"score": 0, "n": 1}, "short": {"score": 100, "n": 1}}}


@pytest.mark.parametrize("name", known_benchmarks())
def test_nothing_has_no_mean(name):
    assert set(benchmark(name).aggregate([]).values()) == {None}


@pytest.mark.parametrize("name", known_benchmarks())
def test_the_docs_name_every_column_and_place(name):
    chosen, text = benchmark(name), (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    listed = next(line for line in text[text.index("| name | columns |") :].splitlines() if f"`{name}`" in line)
    dotted = {"option1", "option2", "option3"}
    assert [column for column in chosen.columns if f"`{column}`" not in listed and column not in dotted] == []
    assert f"{chosen.repo}, {chosen.split}" in text or name in ("mvp", "mvp_mini")
    assert f"`{chosen.folder}`" in text and chosen.title.split(" (")[0] in text


def test_an_unknown_benchmark_is_told_its_nearest():
    with pytest.raises(ConfigError, match="Did you mean video_mmmu"):
        benchmark("videommu")
    with pytest.raises(ConfigError, match="Did you mean activitynet_tvg"):
        benchmark("ActivityNet")
