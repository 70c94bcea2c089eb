"""The verbs over a tiny random checkpoint: what they print and write, and the one line that bad input ends in."""

import errno
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from videoauto_jax.base import keep_base
from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.cli import ask, export, sft, train
from videoauto_jax.cli.main import main
from videoauto_jax.cli.progress import headline, progress_bar
from videoauto_jax.config import dump_config
from videoauto_jax.errors import UsageError
from videoauto_jax.eval import runner
from videoauto_jax.files import write_atomic
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer
from videoauto_jax.train.recipe import GRPOConfig, SFTConfig


@pytest.fixture
def videoauto(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; gives (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("media") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def held_out(tmp_path):
    lines = [{"question": f"Is {n} even?", "answer": "yes", "problem_type": "exact_match"} for n in range(3)]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def evaluation(tiny_folder, held_out):
    """Arguments of a small evaluation."""
    sets = f"data.sets={{one: {{loader: Plain, anno_path: {held_out}}}}}"
    sampling = ("sampling.prompts=2", "sampling.max_new_tokens=8")
    return ["eval", f"model={tiny_folder}", "output=out", "data.names=[one]", sets, *sampling, "dtype=float32"]


def error_of(result, status):
    """The error line of a command that failed with `status` and printed nothing else on stderr."""
    assert result[0] == status
    lines = result[2].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in result[2]
    return lines[0]


# ask


def test_ask_prints_every_part_of_the_answer(videoauto, tiny_folder, image):
    arguments = (f"model={tiny_folder}", "max_new_tokens=6", "dtype=float32", "image_budget.max_pixels=4096")
    status, out, _ = videoauto("ask", image, "Which colour?", "mode=second", *arguments)
    shown = [line[:13].strip() for line in out.splitlines()]
    assert status == 0
    assert [name for name in shown if name in ("first answer", "confidence", "final answer", "tokens")] == [
        "first answer", "confidence", "final answer", "tokens",
    ]  # fmt: skip


def test_ask_says_why_an_answer_is_not_finished(capsys):
    for finish, says in (("stop", "tokens       1\n"), ("length", "1 (cut off)"), ("nan", "not numbers")):
        answer = make_answer("Hm", np.ones(1, np.int32), *np.zeros((2, 1)), -1.0, FINISH_REASONS.index(finish), 1)
        ask.show(answer, ask.AskConfig("model"), Console())
        assert says in capsys.readouterr().out


def test_ask_builds_the_prompt_of_training(image):
    config = ask.AskConfig("model", image, "Which colour?")
    system, user = ask.conversation(config)
    assert system["content"].startswith("You are a helpful assistant.\nFIRST:")
    visual, text = user["content"]
    assert visual == {"type": "image", "image": image, "min_pixels": 4 * 784, "max_pixels": 768 * 784}
    assert text["text"] == "Which colour?\nPut your final answer in \\boxed{}."
    formatted = ask.AskConfig("model", None, "When? In the format \\boxed{[start, end]}.")
    assert ask.conversation(formatted)[1]["content"] == [{"type": "text", "text": formatted.question}]


def test_ask_refuses_what_it_cannot_show(videoauto, tiny_folder, tmp_path, image):
    model = f"model={tiny_folder}"
    assert "no such video or image (absent.mp4)" in error_of(videoauto("ask", "absent.mp4", "What?", model), 1)
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    assert "broken.mp4" in error_of(videoauto("ask", "broken.mp4", "What?", model), 1)
    assert "there is no question" in error_of(videoauto("ask", image, model), 2)
    assert '"model" is missing' in error_of(videoauto("ask", image, "What?"), 2)
    assert 'Did you mean "threshold"?' in error_of(videoauto("ask", image, "What?", model, "treshold=0.9"), 2)


def test_another_architecture_is_named(videoauto, tmp_path, image):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "llama" in error_of(videoauto("ask", image, "What?", f"model={tmp_path}"), 1)
    assert "absent" in error_of(videoauto("ask", image, "What?", "model=./absent"), 1)


# eval


def test_eval_writes_answers_scores_and_a_report(videoauto, evaluation, tmp_path):
    status, out, _ = videoauto(*evaluation)
    assert status == 0 and "auto" in out and "report.html" in out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        *("config.yaml", "base.txt", "samples.jsonl", "timings.jsonl", "skipped.json", "summary.json", "report.html")
    }
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    assert [record["id"] for record in records] == ["one/1", "one/2", "one/3"]
    assert all(record["tokens"] <= 8 for record in records)


def test_eval_keeps_what_was_answered_before_the_disk_was_full(videoauto, evaluation, tmp_path, monkeypatch):
    write, written = runner.append_jsonl, []

    def fill(path, record):
        if len(written) == 4:  # two records and what each took
            raise OSError(28, "No space left on device", str(path))
        written.append(write(path, record))

    monkeypatch.setattr(runner, "append_jsonl", fill)
    assert "the disk is full" in error_of(videoauto(*evaluation), 1)
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(runner, "append_jsonl", write)
    assert videoauto(*evaluation)[0] == 0
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 3


def test_eval_refuses_bad_data_and_foreign_folders(videoauto, evaluation, tmp_path, held_out):
    assert "no data sets" in error_of(videoauto(*evaluation, "data.names=[]"), 2)
    assert "absent" in error_of(videoauto(*evaluation, "model=absent"), 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "not empty (out)" in error_of(videoauto(*evaluation), 2)
    held_out.write_text('{"question": "What?", "problem_type": "math"}\n')
    message = error_of(videoauto(*evaluation), 1)
    assert "field 'answer' is missing" in message and "held_out.jsonl:1" in message
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


# train and sft


@pytest.mark.parametrize("module, function, kind", [(train, "train_grpo", GRPOConfig), (sft, "train_sft", SFTConfig)])
def test_training_verbs_hand_over_the_recipe(videoauto, monkeypatch, tmp_path, module, function, kind):
    seen = []
    monkeypatch.chdir(tmp_path)

    def learn(config, *, force, progress):
        progress(1, 2, {"loss": (3.0, 2.0)})
        seen.append((config, force))
        write_atomic(tmp_path / config.output / "metrics.jsonl", '{"step": 1, "loss": 1.5}\n')
        return True

    monkeypatch.setattr(module, function, learn)
    verb = module.__name__.rpartition(".")[2]
    status, out, _ = videoauto(verb, "model=m", "output=runs/x", "optimizer.learning_rate=1e-4", "--force")
    assert status == 0 and "runs/x/model" in out and (tmp_path / "runs/x/report.html").exists()
    config, force = seen[0]
    assert isinstance(config, kind) and config.optimizer.learning_rate == 1e-4 and force


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sft -c train/qwen3_vl_8b_grpo_auto", ["no recipe of sft", "videoauto train -c train/qwen3_vl_8b_grpo_auto"]),
        ("train -c eval/qwen3_vl_128k lora.rank=8", ["no recipe of train", "videoauto eval -c eval/qwen3_vl_128k"]),
        ("eval -c eval/qwen3_vl_128k --calibrate", ["unknown option --calibrate", "videoauto eval calibrate"]),
        ("eval -c eval/qwen3_vl_128k --strict-media", ["unknown option --strict-media", "strict_media=value"]),
        ("train -c train/qwen3_vl_8b_grpo_auto loss.betta=1", ['"loss.betta"', '"loss.beta"?']),
        ("train -c train/qwen3_vl_8b_grpo_auto loss.beta=-1", ["beta is -1.0 (loss)", "at least 0"]),
        ("train -c train/qwen3_vl_8b_grpo_auto rollout.top_p=2", ["top_p=2.0 (rollout)", "at most 1"]),
        ("train -c train/qwen3_vl_8b_grpo_auto mesh.data=3 mesh.context=7", ["a multiple of 21 devices", "(mesh)"]),
    ],
)
def test_wrong_settings_are_named_with_their_remedy(videoauto, command, words):
    line = error_of(videoauto(*command.split()), 2)
    assert all(word in line for word in words), line


def test_training_refuses_a_missing_model(videoauto):
    sets = "data.sets={one: {loader: Plain, anno_path: a.jsonl}}"
    assert "absent" in error_of(videoauto("sft", "model=absent", "output=run", "data.names=[one]", sets), 1)


# export


@pytest.fixture
def run_folder(tmp_path, tiny_folder):
    """A run with a checkpoint at step 3, whose trained weights are those of the model plus 1."""
    config = SFTConfig(str(tiny_folder), str(tmp_path / "run"))
    _, trainable, _ = nnx.split(load_model(tiny_folder, dtype="float32"), config.trainable, ...)
    moved = jax.tree.map(lambda x: x + 1, trainable)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(3, {"trainable": moved, "opt_state": {"count": np.array(3)}}, {}, wait=True)
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    return tmp_path / "run"


def test_export_merges_the_newest_checkpoint_into_its_base(videoauto, run_folder, tiny_folder, tmp_path):
    status, out, _ = videoauto("export", run_folder, "hf")
    assert status == 0 and "step 3 is in hf" in out
    base, exported = (parameter_paths(load_model(path, dtype="float32")) for path in (tiny_folder, tmp_path / "hf"))
    for path, array in base.items():
        trained = not path.startswith("vision/")
        np.testing.assert_array_equal(exported[path], np.asarray(array) + np.float32(trained), err_msg=path)
    assert (tmp_path / "hf" / "tokenizer.json").exists()


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/3"])
def test_export_finds_the_run_from_any_of_its_folders(run_folder, place):
    folder, step = export.find_run(run_folder.parent / place)
    assert folder == run_folder and step == (3 if place.endswith("3") else None)


def test_export_knows_which_recipe_a_run_had(tmp_path):
    config = GRPOConfig("m", "out", rounds=7)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert export.read_run(tmp_path) == config


def test_export_refuses_what_is_no_run(videoauto, run_folder, tiny_folder, tmp_path):
    assert "no such folder" in error_of(videoauto("export", "absent", "hf"), 2)
    assert "HF model folder already" in error_of(videoauto("export", tiny_folder, "hf"), 2)
    assert "there is no step 9" in error_of(videoauto("export", run_folder, "hf", "step=9"), 1)
    assert not (tmp_path / "hf").exists()
    assert "which is not there" in error_of(videoauto("export", run_folder, "hf", "base=absent"), 2)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes").write_text("mine")
    assert "not empty" in error_of(videoauto("export", run_folder, "hf"), 2)


def test_export_refuses_a_base_of_another_architecture(videoauto, run_folder, untied_folder):
    message = error_of(videoauto("export", run_folder, "hf", f"base={untied_folder}"), 1)
    assert "head/kernel" in message


def test_export_refuses_other_weights_than_the_run_started_from(videoauto, run_folder, tiny_folder, tmp_path):
    keep_base(run_folder, tiny_folder, fix="")
    assert videoauto("export", run_folder, "hf")[0] == 0
    message = error_of(videoauto("export", run_folder, "again", "base=hf"), 2)
    assert "did not begin with the weights that are in hf" in message and "base=FOLDER" in message


def test_force_never_deletes_what_an_output_is_made_from(videoauto, run_folder, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "base")
    files = sorted(tmp_path.rglob("*"))
    for command in (
        ("export", run_folder, run_folder),
        ("export", run_folder, run_folder / "checkpoints"),
        ("export", run_folder, "base", "base=base"),
        ("import", "base", "base"),
    ):
        assert "would delete what the output is made from" in error_of(videoauto(*command, "--force"), 2)
    assert sorted(tmp_path.rglob("*")) == files


def test_a_full_disk_leaves_nothing_of_an_export(videoauto, run_folder, tmp_path, monkeypatch):
    def fail(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)  # the last thing that happens to a file of weights
        assert "the disk is full" in error_of(videoauto("export", run_folder, "hf"), 1)
    assert list((tmp_path / "hf").iterdir()) == []
    assert videoauto("export", run_folder, "hf")[0] == 0


# progress


def test_the_bar_shows_numbers_and_pairs_alike():
    assert headline({"reward": (5.0, 2.0), "kl": 0.0123, "unknown": 1.0}) == "reward 2.5  kl 0.0123"
    assert headline({"loss": (0.0, 0.0)}) == ""


def test_without_a_terminal_a_line_stands_for_every_tenth(capsys):
    with progress_bar("train") as report:
        for step in range(1, 21):
            report(step, 20, {"loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    for step, line in zip(range(2, 21, 2), lines, strict=True):
        left = "" if step == 20 else r"  0:00:0\d left"
        assert re.fullmatch(rf"train: {step}/20{left}  loss 1", line)


def test_a_verb_lists_its_inner_verbs_and_knows_the_nearest(videoauto):
    status, out, _ = videoauto("eval", "--help")
    assert status == 0 and all(f"eval {inner}" in out for inner in ("compare", "calibrate", "rescore"))
    status, out, _ = videoauto("eval", "compare", "--help")
    assert status == 0 and "eval compare A B" in out and "eval compare rescore" not in out
    assert 'Did you mean "eval compare"?' in error_of(videoauto("eval", "compar", "a", "b"), 2)


def test_ask_without_words_is_a_usage_error():
    with pytest.raises(UsageError):
        ask.conversation(ask.AskConfig("model", None, "  "))
