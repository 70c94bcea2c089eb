"""The help of configuration keys, from docstrings and from comments."""

import dataclasses
from importlib import import_module

import pytest

from videoauto_jax.attributes import attribute_help
from videoauto_jax.cli.main import VERBS


@dataclasses.dataclass
class Parent:
    """A parent.

    Attributes:
        kept: told by the parent.
        changed: told by
            the parent.
    """

    kept: int = 0
    changed: int = 0


@dataclasses.dataclass
class Child(Parent):
    """A child.

    Attributes:
        changed: told by the child: in
            two lines.
        low, high: a pair, told once.

    Raises:
        ValueError: no field of this name.
    """

    changed: int = 1
    low: int = 0
    high: int = 0
    commented: int = 0  # told beside
    # told above
    above: int = 0
    silent: int = 0


def test_docstrings_comments_and_parents():
    assert attribute_help(Child) == {
        "kept": "told by the parent.",
        "changed": "told by the child: in two lines.",
        "low": "a pair, told once.",
        "high": "a pair, told once.",
        "commented": "told beside",
        "above": "told above",
    }


@pytest.mark.parametrize("verb", ["sft", "train", "eval", "ask", "export"])
def test_every_key_of_a_verb_is_explained(verb):
    config = import_module(VERBS[verb]).CONFIG
    assert {field.name for field in dataclasses.fields(config)} <= attribute_help(config).keys()
