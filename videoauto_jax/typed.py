"""Untyped settings to typed values: walks dataclasses and containers so that every complaint has its key and origin.

Single values are decoded by draccus, whose `decode.register` adds types of one's own; what draccus would let pass (a
word as a tuple of letters, null for anything, 1 as true) is refused before it gets there.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import draccus

from videoauto_jax.errors import ConfigError
from videoauto_jax.recipes import Key

_PLAIN = {str: "text", Path: "path", bool: "true or false", int: "integer", float: "number", type(None): "null"}
_ABSENT = dataclasses.MISSING


class Mismatch(ConfigError):
    """The value at `key` is of another type than the one tried."""

    key: Key


class Reader:
    """Reads values of annotated types; every method takes (type, raw value, dotted key, default of the code).

    Args:
        origin_of: the place that set a key, for messages.
        nearby: the dotted keys that exist anywhere under that last name, for an unknown key without a near sibling.
    """

    def __init__(self, origin_of: Callable[[Key], str | None], nearby: Callable[[str], list[str]] = lambda name: []):
        self._origin_of = origin_of
        self._nearby = nearby

    def value(self, annotation: Any, raw: Any, key: Key, default: Any = _ABSENT) -> Any:
        kind, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if annotation is Any:
            return raw
        if is_union(annotation):
            return self._union(annotation, raw, key, default)
        if dataclasses.is_dataclass(annotation):
            return self.section(annotation, raw, key, default)
        if kind is dict:
            return self._dict(annotation, raw, key, default)
        if kind in (tuple, list):
            return self._sequence(annotation, kind, arguments, raw, key)
        return self._scalar(annotation, raw, key)

    def section(self, cls: type, raw: Any, key: Key, default: Any = _ABSENT) -> Any:
        if not isinstance(raw, dict):
            raise self._mismatch(cls, raw, key)
        hints, values = typing.get_type_hints(cls), {}
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in raw:
            if name not in fields:
                raise self.unknown((*key, str(name)), list(fields))
        for name, field in fields.items():
            inner = field_default(field) if default is _ABSENT else getattr(default, name)
            if name in raw:
                values[name] = self.value(hints[name], raw[name], (*key, name), inner)
            elif inner is not _ABSENT:
                values[name] = inner
            else:
                values[name] = self._absent(hints[name], (*key, name))
        return self._build(cls, values, key)

    def unknown(self, key: Key, siblings: list[str]) -> ConfigError:
        """The error for a key that does not exist: names one of its name elsewhere, else the nearest beside it."""
        section = ".".join(key[:-1])
        beside = [".".join((*key[:-1], name)) for name in get_close_matches(key[-1], siblings, n=1)]
        elsewhere = self._nearby(key[-1])
        exact = [one for one in elsewhere if one.split(".")[-1] == key[-1]]
        near = exact + beside + elsewhere
        if near:
            fix = f'Did you mean "{near[0]}"?'
        else:
            fix = f"Known {f'in {section}' if section else 'here'}: {', '.join(siblings) or 'nothing'}"
        return ConfigError(f'unknown key "{".".join(key)}"', where=self._origin_of(key), fix=fix)

    def _absent(self, annotation: Any, key: Key) -> Any:
        if dataclasses.is_dataclass(annotation):
            return self.section(annotation, {}, key)
        dotted = ".".join(key)
        fix = f"Set it in the recipe or add {dotted}=... to the command ({type_name(annotation)})"
        raise ConfigError(f'"{dotted}" is missing', where=self._origin_of(key), fix=fix)

    def _union(self, annotation: Any, raw: Any, key: Key, default: Any) -> Any:
        inside = None
        for member in sorted(typing.get_args(annotation), key=lambda member: member is float):  # 3 is an int first
            try:
                mine = isinstance(member, type) and isinstance(default, member)
                return self.value(member, raw, key, default if mine else _ABSENT)
            except ConfigError as error:  # the wrong kind of value, or the right kind with a fault inside
                inside = inside or (None if isinstance(error, Mismatch) and error.key == key else error)
        raise inside or self._mismatch(annotation, raw, key)

    def _dict(self, annotation: Any, raw: Any, key: Key, default: Any) -> dict:
        if not isinstance(raw, dict):
            raise self._mismatch(annotation, raw, key)
        name_type, item_type = typing.get_args(annotation) or (str, Any)
        result = {} if default is _ABSENT else dict(default)
        for raw_name, item in raw.items():
            inner = (*key, str(raw_name))
            name = self.value(name_type, raw_name, inner)
            if item is None and not _fits_null(item_type):
                result.pop(name, None)
            else:
                result[name] = self.value(item_type, item, inner, result.get(name, _ABSENT))
        return result

    def _sequence(self, annotation: Any, kind: type, arguments: tuple, raw: Any, key: Key) -> Any:
        if not isinstance(raw, list):
            raise self._mismatch(annotation, raw, key)
        if kind is list or arguments[-1:] == (...,) or not arguments:
            arguments = (arguments[0] if arguments else Any,) * len(raw)
        if len(arguments) != len(raw):
            raise self._mismatch(annotation, raw, key)
        return kind(self.value(one, item, (*key, str(n))) for n, (one, item) in enumerate(zip(arguments, raw)))

    def _scalar(self, annotation: Any, raw: Any, key: Key) -> Any:
        if not _fits(annotation, raw):
            raise self._mismatch(annotation, raw, key)
        if annotation is type(None) or typing.get_origin(annotation) is Literal:
            return raw
        try:
            return draccus.decode(annotation, raw)
        except Exception as error:  # a decoder of one's own may raise anything
            raise self._mismatch(annotation, raw, key) from error

    def _build(self, cls: type, values: dict, key: Key) -> Any:
        try:
            return cls(**values)
        except ConfigError as error:  # the dataclass's own checks, which do not know where it stands
            if error.where is not None or not key:
                raise
            raise ConfigError(error.what, where=".".join(key), fix=error.fix) from error
        except (TypeError, ValueError) as error:
            section = f'"{".".join(key)}": ' if key else ""
            where = self._origin_of(key) if key else None
            raise ConfigError(f"{section}{error}", where=where, fix="Change one of these values") from error

    def _mismatch(self, annotation: Any, raw: Any, key: Key) -> Mismatch:
        what = f'"{".".join(key)}" is {_shown(raw)}, expected {type_name(annotation)}'
        error = Mismatch(what, where=self._origin_of(key), fix=_nearest_choice(annotation, raw) or "Change the value")
        error.key = key
        return error


def field_default(field: dataclasses.Field) -> Any:
    """A field's default of the code, or `dataclasses.MISSING`."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def choices(annotation: Any) -> list[Any]:
    """What a `Literal` or an enum allows, in the form that a recipe writes; empty for other types."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.name for member in annotation]
    members = typing.get_args(annotation) if is_union(annotation) else ()
    return [choice for member in members for choice in choices(member)]


def type_name(annotation: Any) -> str:
    """A type as a user reads it: `number`, `sdpa | flash`, `list of integer or null`."""
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_union(annotation):
        return " or ".join(type_name(member) for member in arguments)
    if choices(annotation):
        return " | ".join(str(choice) for choice in choices(annotation))
    if kind is tuple and arguments[-1] is not ...:
        return f"[{', '.join(type_name(one) for one in arguments)}]"
    if kind in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if kind is dict:
        return f"mapping of {type_name(arguments[1])}"
    if dataclasses.is_dataclass(annotation):
        return f"a section ({', '.join(field.name for field in dataclasses.fields(annotation))})"
    return "anything" if annotation is Any else _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _fits(annotation: Any, raw: Any) -> bool:
    if typing.get_origin(annotation) is Literal:
        return any(type(raw) is type(choice) and raw == choice for choice in typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return any(raw in (member.name, member.value) for member in annotation)
    allowed = {bool: bool, int: int, float: int | float, str: str, Path: str, type(None): type(None)}
    if annotation in allowed:
        return isinstance(raw, allowed[annotation]) and (annotation is bool or not isinstance(raw, bool))
    return raw is not None


def _fits_null(annotation: Any) -> bool:
    return annotation in (Any, type(None)) or (is_union(annotation) and type(None) in typing.get_args(annotation))


def _nearest_choice(annotation: Any, raw: Any) -> str | None:
    near = get_close_matches(str(raw), [str(choice) for choice in choices(annotation)], n=1)
    return f'Did you mean "{near[0]}"?' if near else None


def _shown(raw: Any) -> str:
    text = json.dumps(raw, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
