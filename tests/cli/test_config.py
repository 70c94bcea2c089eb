"""Configuration: what recipes and overrides mean, and the one line that answers each way of getting them wrong."""

import dataclasses
import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from videoauto_jax.config import changes, dump_config, load_config, settings
from videoauto_jax.errors import ConfigError


class Layout(enum.Enum):
    train = "train"
    rollout = "rollout"


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-6  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Source:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Judge:
    model: str
    threshold: float | int = 0.5


@dataclass(frozen=True)
class Recipe:
    model: str
    # how often the loop runs
    steps: int = 10
    seed: int | None = None
    question: str | None = None
    data: str | tuple[str, ...] = ()
    debug: bool = False
    layout: Layout = Layout.train
    optimizer: Optimizer = Optimizer(lr=5e-6)
    judge: Judge | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    grids: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps cannot be negative")


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def error(path=None, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, path, overrides)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2
    return str(caught.value)


def test_defaults_recipe_and_overrides_in_this_order(tmp_path):
    write(tmp_path, "base/one.yaml", "model: base\nsteps: 1\noptimizer: {lr: 1e-5, kind: muon}\ngrids: [[1, 2]]\n")
    write(tmp_path, "base/two.yaml", "steps: 2\nsources:\n  a: {path: a.json}\n  b: {path: b.json, weight: 2}\n")
    path = write(
        tmp_path, "run.yaml", "base: [base/one, base/two.yaml]\nsources: {b: {weight: 3}}\noptimizer:\n  lr: 3e-5\n"
    )
    config = load_config(
        Recipe, path, ["optimizer.betas=[0.8, 0.9]", "seed=7", "sources.a=null", "grids=[[3, 4], [5, 6]]"]
    )
    assert config == Recipe(
        model="base",
        steps=2,
        seed=7,
        optimizer=Optimizer(lr=3e-5, betas=(0.8, 0.9), kind="muon"),
        sources={"b": Source(Path("b.json"), 3.0)},
        grids=[(3, 4), (5, 6)],
    )


def test_a_section_keeps_the_defaults_its_owner_gave_it():
    assert load_config(Recipe, None, ["model=x", "optimizer.kind=muon"]).optimizer == Optimizer(5e-6, kind="muon")


def test_packaged_recipes_are_found_by_name(tmp_path, monkeypatch):
    write(tmp_path, "quickstart/train.yaml", "base: models/tiny\nsteps: 3")
    write(tmp_path, "models/tiny.yaml", "model: tiny")
    monkeypatch.setattr("videoauto_jax.recipes.packaged_recipes", lambda: tmp_path)
    assert load_config(Recipe, "quickstart/train") == Recipe(model="tiny", steps=3)
    assert 'no recipe "quickstrt/train"' in error("quickstrt/train") and '"quickstart/train"?' in error(
        "quickstrt/train"
    )


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("seed=null", "seed", None),
        ("steps=1_000", "steps", 1000),
        ("optimizer.lr=1e-5", "optimizer.lr", 1e-5),
        ("optimizer.lr=3", "optimizer.lr", 3.0),
        ("judge={model: m, threshold: 1}", "judge", Judge("m", 1)),
        ("judge.model=m", "judge", Judge("m")),
        ("judge=null", "judge", None),
        ("question=Which # is it: 3 or [4?", "question", "Which # is it: 3 or [4?"),
        ("question=What: a cat", "question", "What: a cat"),
        ("question=3", "question", "3"),
        ("question='null'", "question", "null"),
        ("question=null", "question", None),
        ("model=yes", "model", "yes"),
        ("model=2026-01-01", "model", "2026-01-01"),
        ("model=a=b", "model", "a=b"),
        ("data=one", "data", "one"),
        ("data=[one, two]", "data", ("one", "two")),
        ("layout=rollout", "layout", Layout.rollout),
        ("debug=true", "debug", True),
        ("extra.a.b=[1, x]", "extra", {"a": {"b": [1, "x"]}}),
        ("sources.a.path=1", "sources", {"a": Source(Path("1"))}),
    ],
)
def test_overrides_are_read_as_their_type_wants(override, name, value):
    found = load_config(Recipe, None, ["model=m", override])
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stepz=3", ['unknown key "stepz"', "command line", 'Did you mean "steps"?']),
        ("optimizer.lrr=3", ['"optimizer.lrr"', '"optimizer.lr"?']),
        ("betas=[1, 2]", ['unknown key "betas"', '"optimizer.betas"?']),
        ("zzz=1", ['unknown key "zzz"', "Known here: model, steps"]),
        ("optimizer.zzz=1", ['"optimizer.zzz"', "Known in optimizer: lr, betas, kind"]),
        ("steps.a=3", ['"steps" has no keys', "integer"]),
        ("steps=x", ['"steps" is "x"', "expected integer", "command line"]),
        ("steps=1.5", ['"steps" is 1.5', "expected integer"]),
        ("steps=true", ["expected integer"]),
        ("steps=", ['"steps" is null', "expected integer"]),
        ("debug=1", ['"debug" is 1', "true or false"]),
        ("optimizer.lr=fast", ['"optimizer.lr" is "fast"', "expected number"]),
        ("optimizer.betas=[1]", ['"optimizer.betas" is [1]', "[number, number]"]),
        ("optimizer.betas=ab", ['"optimizer.betas" is "ab"']),
        ("optimizer.kind=adam", ['"optimizer.kind" is "adam"', "adamw | muon", 'Did you mean "adamw"?']),
        ("layout=roll", ['"layout"', "train | rollout"]),
        ("judge={}", ['"judge.model" is missing', "judge.model=..."]),
        ("judge={model: m, threshold: x}", ['"judge.threshold" is "x"']),
        ("sources={a: {weight: 1}}", ['"sources.a.path" is missing', "command line"]),
        ("grids=[[1, 2], [3]]", ['"grids.1" is [3]', "[integer, integer]"]),
        ("optimizer=5", ['"optimizer" is 5', "a section (lr, betas, kind)"]),
        ("seed=[1", ["broken YAML", "seed"]),
        ("steps=-1", ["steps cannot be negative"]),
        ("steps", ['"steps" is not an override', "key=value"]),
        ("=3", ["not an override"]),
    ],
)
def test_a_wrong_override_gets_one_line(override, words):
    message = error(None, ["model=m", override])
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\noptimizer:\n  lrr: 3\n", ['"optimizer.lrr"', "run.yaml:3", '"optimizer.lr"?']),
        ("model: m\n\nsteps: many\n", ['"steps" is "many"', "run.yaml:3", "expected integer"]),
        ("steps: 1\n", ['"model" is missing', "model=... "]),
        ("model: m\nsteps: [1\n", ["broken YAML", "run.yaml:3"]),
        ("model: m\n  steps: 1\n", ["broken YAML", "run.yaml:2"]),
        ("model: m\nmodel: n\n", ['"model" is given twice', "run.yaml:2"]),
        ("- model\n", ["run.yaml", "key: value"]),
        ("base: gone\n", ['no recipe "gone"']),
        ("base: {a: 1}\n", ["`base`", "run.yaml"]),
        ("base: run\n", ["based on each other", "run.yaml -> "]),
        ("model: m\n1: 2\n", ['unknown key "1"', "run.yaml:2"]),
    ],
)
def test_a_wrong_recipe_gets_one_line_with_file_and_line(tmp_path, text, words):
    message = error(write(tmp_path, "run.yaml", text))
    assert all(word in message for word in words), message


def test_an_error_in_a_base_names_the_base_and_an_override_takes_the_blame(tmp_path):
    write(tmp_path, "base.yaml", "model: m\nsteps: many\n")
    path = write(tmp_path, "run.yaml", "base: base\nseed: 1\n")
    assert "base.yaml:2" in error(path)
    assert "command line" in error(path, ["steps=few"])
    assert load_config(Recipe, path, ["steps=4"]).steps == 4


def test_cycles_through_several_recipes_are_shown(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        write(tmp_path, f"{name}.yaml", f"base: {base}\n")
    message = error(tmp_path / "a.yaml")
    assert message.index("b.yaml ->") < message.index("c.yaml ->") and "a.yaml" not in message


def test_dump_round_trips(tmp_path):
    config = Recipe(
        model="1e-5",
        seed=None,
        question="yes: # no",
        data=("on", "null"),
        layout=Layout.rollout,
        optimizer=Optimizer(lr=1e-7, betas=(math.inf, 1e20)),
        judge=Judge("2026-01-01", 3),
        sources={"a": Source(Path("x/y"), 0.1)},
        extra={"t": "true", "n": 8, "f": 1.0, "none": None, "list": [1, "1"]},
        grids=[(1, 2)],
    )
    path = write(tmp_path, "dump.yaml", dump_config(config))
    again = load_config(Recipe, path)
    assert again == config and dump_config(again) == dump_config(config)
    assert dataclasses.is_dataclass(again.judge) and again.judge.threshold == 3


def test_changes_make_the_configuration_again():
    config = Recipe("m", question='say "3" # or: 4', data=("a", "b"), optimizer=Optimizer(lr=5e-6, kind="muon"))
    overrides = list(changes(config))
    assert overrides[0] == "model=m" and "optimizer.kind=muon" in overrides and len(overrides) == 4
    assert load_config(Recipe, None, overrides) == config


def test_settings_show_every_key_with_type_default_and_comment():
    found = {setting.key: setting for setting in settings(Recipe)}
    assert (found["model"].type, found["model"].default) == ("text", None)
    assert (found["steps"].default, found["steps"].help) == ("10", "how often the loop runs")
    assert (found["optimizer.lr"].default, found["optimizer.lr"].help) == ("5.0e-06", "peak learning rate")
    assert found["optimizer.kind"].type == "adamw | muon"
    assert (found["seed"].type, found["seed"].default) == ("integer or null", "null")
    assert found["layout"].default == "train"
    assert {"judge.model", "sources.NAME.path"} <= set(found) and "optimizer" not in found
