"""What the keys of a configuration mean, read from the source of its dataclass."""

import inspect
import re

from draccus.wrappers.docstring import get_attribute_docstring, get_preferred_help_text

_SECTION = re.compile(r"^Attributes:\n((?:[ ]+.*(?:\n|$)|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", re.MULTILINE)


def attribute_help(cls: type) -> dict[str, str]:
    """The line that explains each field of a dataclass, inherited ones included.

    It stands under `Attributes:` in the docstring (several names may share a line), else in a comment beside or above
    the field.
    """
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__[:-1]):
        found |= _comments(parent) | _documented(parent)
    return found


def _documented(cls: type) -> dict[str, str]:
    section = _SECTION.search(inspect.cleandoc(cls.__dict__.get("__doc__") or ""))
    entries = _ENTRY.findall(section[1]) if section else []
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _comments(cls: type) -> dict[str, str]:
    found = {}
    for name in cls.__dict__.get("__annotations__", {}):
        try:
            text = get_preferred_help_text(get_attribute_docstring(cls, name))
        except (IndexError, OSError, TypeError):  # the last line of a class without a comment; a class without source
            text = None
        if text:
            found[name] = " ".join(text.split())
    return found
