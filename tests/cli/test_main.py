"""The command line's frame, with verbs made for the purpose: statuses, one-line errors, help, words without keys."""

import errno
import subprocess
import sys
from importlib import import_module

import pytest

from videoauto_jax.cli.main import VERBS, main, summary
from videoauto_jax.config import settings

FAKE_VERB = """
import dataclasses
from videoauto_jax.errors import DataError

HELP = "Shows what it was given."
POSITIONAL = ("video", "question")
SEEN = []

@dataclasses.dataclass(frozen=True)
class Mode:
    threshold: float = 0.97  # stop below this

@dataclasses.dataclass(frozen=True)
class Config:
    video: str
    question: str | None = None
    mode: Mode = Mode()
    fail: str | None = None

CONFIG = Config
FAILURES = {
    "data": DataError("no field\\n x", where="a.json:3", fix="Add it"),
    "interrupt": KeyboardInterrupt(),
    "full": OSError(28, "No space left on device", "/runs/x"),
    "permission": PermissionError(13, "Permission denied", "/root/x"),
    "other": ZeroDivisionError("division\\nby zero"),
    "silent": ValueError(),
}

def run(config, *, force):
    if config.fail:
        raise FAILURES[config.fail]
    SEEN.append((config, force))
"""


@pytest.fixture
def videoauto(tmp_path, monkeypatch, capsys):
    """Runs a command with the verb `show`; gives (status, stdout, stderr, what the verb saw)."""
    (tmp_path / "fake_verb_show.py").write_text(FAKE_VERB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        status = main(arguments, {"show": "fake_verb_show", "train": "module_that_is_not_there"})
        out, err = capsys.readouterr()
        return status, out, err, getattr(sys.modules.get("fake_verb_show"), "SEEN", [])

    yield run
    sys.modules.pop("fake_verb_show", None)


def test_words_and_settings_reach_the_verb(videoauto, tmp_path):
    (tmp_path / "my.yaml").write_text("mode: {threshold: 0.5}\nquestion: from the recipe\n")
    assert videoauto("show", "--force", "a b.mp4", "How many: 3 # or 4?")[0] == 0
    assert videoauto("show", "v.mp4", "-c", "my.yaml", "mode.threshold=1e-2")[0] == 0
    status, out, err, seen = videoauto("show", "-c", "my", "question=x=y", "--", "mode=v.mp4")
    assert (status, out, err) == (0, "", "")
    values = [(config.video, config.question, config.mode.threshold, force) for config, force in seen]
    assert values == [
        ("a b.mp4", "How many: 3 # or 4?", 0.97, True),
        ("v.mp4", "from the recipe", 0.01, False),
        ("mode=v.mp4", "x=y", 0.5, False),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["shw"], 2, ['unknown verb "shw"', '"show"?']),
        (["zzz"], 2, ["Verbs: show, train"]),
        (["--force"], 2, ["no verb was given", "Verbs:"]),
        (["show", "--lr", "3"], 2, ["unknown option --lr", "lr=value"]),
        (["show", "-c"], 2, ["-c needs a recipe"]),
        (["show", "-c", "gone"], 2, ['no recipe "gone"']),
        (["show", "v", "q", "third"], 2, ['unexpected "third"', "VIDEO QUESTION"]),
        (["show", "v", "q", "my.yaml"], 2, ['unexpected "my.yaml"', "-c my.yaml"]),
        (["show"], 2, ['"video" is missing']),
        (["show", "v", "mode.treshold=1"], 2, ['"mode.treshold"', '"mode.threshold"?']),
        (["show", "v", "fail=data"], 1, ["no field x (a.json:3). Add it"]),
        (["show", "v", "fail=interrupt"], 130, ["interrupted", "same command resumes"]),
        (["show", "v", "fail=full"], 1, ["the disk is full (/runs/x)", "Free some space"]),
        (["show", "v", "fail=permission"], 1, ["permission denied (/root/x)", "permissions"]),
        (["show", "v", "fail=other"], 1, ["ZeroDivisionError: division by zero. Run with --debug"]),
        (["show", "v", "fail=silent"], 1, ["ValueError. Run with --debug"]),
    ],
)
def test_every_failure_is_one_line_and_a_status(videoauto, arguments, status, words):
    found, out, err, _ = videoauto(*arguments)
    assert (found, out) == (status, "")
    assert err.count("\n") == 1 and "Traceback" not in err
    assert all(word in err for word in words), err


def test_debug_raises(videoauto):
    with pytest.raises(ZeroDivisionError):
        videoauto("show", "v", "fail=other", "--debug")


def test_help_is_generated_from_the_verb(videoauto):
    status, out, _, seen = videoauto("show", "--help")
    assert status == 0 and seen == []
    assert "show VIDEO QUESTION" in out and "Shows what it was given." in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "video text (to be given)" in lines
    assert "mode.threshold number 0.97 stop below this" in lines


def test_overview_names_the_verbs_without_importing_them(videoauto, tmp_path):
    (tmp_path / "module_that_is_not_there.py").write_text('HELP = "Trains."\nraise RuntimeError("imported")\n')
    for arguments in ([], ["--help"]):
        status, out, _, _ = videoauto(*arguments)
        assert status == 0 and "Shows what it was given." in out and "Trains." in out


def test_a_full_disk_without_a_name_is_still_one_line(videoauto, monkeypatch):
    videoauto("show", "v")
    failure = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setitem(sys.modules["fake_verb_show"].FAILURES, "data", failure)
    assert videoauto("show", "v", "fail=data")[2] == (
        "error: the disk is full. Free some space and run the same command again\n"
    )


def test_the_frame_does_not_import_jax():
    code = "import sys; from videoauto_jax.cli.main import main; main(['--help']); print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"
    assert all(verb in run.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_keeps_the_contract(verb):
    module = import_module(VERBS[verb])
    keys = {setting.key for setting in settings(module.CONFIG)}
    assert callable(module.run) and summary(VERBS[verb]) == module.HELP
    assert "\n" not in module.HELP and set(getattr(module, "POSITIONAL", ())) <= keys
