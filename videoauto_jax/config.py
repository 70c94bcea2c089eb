"""Typed configuration: frozen dataclasses filled from recipes and `key=value`, with errors that say what to write."""

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import draccus

from videoauto_jax.attributes import attribute_help
from videoauto_jax.errors import ConfigError
from videoauto_jax.recipes import Key, Tree, dump_yaml, load_recipe, parse_yaml
from videoauto_jax.typed import Reader, field_default, is_union, type_name

Config = TypeVar("Config")

COMMAND_LINE = "command line"


def load_config(cls: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Fills a configuration dataclass from the defaults of its code, a recipe, and overrides, in this order.

    Mappings merge deeply; lists and scalars replace. In a `dict`, `name: null` removes what stood there.

    Args:
        cls: a dataclass. Its fields may be scalars, paths, enums, `Literal`s, tuples, lists, dicts, other dataclasses,
            and unions of these. If it has `recipes`, other configurations, keys that only those have are passed over:
            one recipe then serves several verbs.
        path: a recipe file or the name of a packaged recipe. Its `base:` names one or more recipes to start from.
        overrides: `a.b=value`, the value read as YAML (`null`, `[1, 2]`, `{x: 1}`), or as it is where text is wanted.

    Raises:
        ConfigError: an unknown key (names the nearest), a value of another type, a missing key, or broken YAML: each
            with its dotted key and the file and line, or the command line, that it came from.
    """
    tree = Tree() if path is None else load_recipe(path)
    reader = Reader(tree.origin, lambda name: _keys_named(cls, name))
    for override in overrides:
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            fix = "Write key=value, for example optimizer.learning_rate=1e-5"
            raise ConfigError(f'"{override}" is not an override', where=COMMAND_LINE, fix=fix)
        tree.put(key, _override_value(text, _annotation(cls, key), key), COMMAND_LINE)
    own = {field.name for field in dataclasses.fields(cls)}
    others = {field.name for kind in getattr(cls, "recipes", ()) for field in dataclasses.fields(kind)} - own
    return reader.section(cls, {key: value for key, value in tree.values.items() if key not in others}, ())


def dump_config(config: Any) -> str:
    """The configuration as YAML; `load_config` of it gives an equal configuration."""
    return dump_yaml(draccus.encode(config))


def changes(config: Any, prefix: str = "", default: Any = dataclasses.MISSING) -> Iterator[str]:
    """The overrides, `key=value`, that make a configuration from the defaults of its code."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        usual = field_default(field) if default is dataclasses.MISSING else getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            usual = usual if isinstance(usual, type(value)) else dataclasses.MISSING
            yield from changes(value, f"{prefix}{field.name}.", usual)
        elif value != usual:
            text = value if isinstance(value, str) else json.dumps(draccus.encode(value))
            yield f"{prefix}{field.name}={text}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of a configuration as a verb's help shows it. `default` is None when the key has to be given."""

    key: str
    type: str
    default: str | None
    help: str


def settings(cls: type, prefix: str = "", default: Any = dataclasses.MISSING) -> Iterator[Setting]:
    """Every key of a configuration dataclass, nested ones dotted. The help is that of `attribute_help`."""
    helps = attribute_help(cls)
    for field in dataclasses.fields(cls):
        annotation, key = _hints(cls)[field.name], prefix + field.name
        value = field_default(field) if default is dataclasses.MISSING else getattr(default, field.name)
        if not dataclasses.is_dataclass(annotation):
            yield Setting(key, _short_type(annotation), _shown(value), helps.get(field.name, ""))
        for inner, name in _sections(annotation):
            yield from settings(inner, f"{key}.{name}", value if isinstance(value, inner) else dataclasses.MISSING)


def _sections(annotation: Any) -> Iterator[tuple[type, str]]:
    """The dataclasses inside a type, with what stands between its key and theirs."""
    if dataclasses.is_dataclass(annotation):
        yield annotation, ""
    elif typing.get_origin(annotation) is dict:
        yield from ((inner, f"NAME.{name}") for inner, name in _sections(typing.get_args(annotation)[1]))
    elif is_union(annotation):
        yield from (pair for member in typing.get_args(annotation) for pair in _sections(member))


def _short_type(annotation: Any) -> str:
    name = type_name(annotation)
    return "section" + (" or null" if name.endswith("or null") else "") if name.startswith("a section") else name


def _shown(value: Any) -> str | None:
    if value is dataclasses.MISSING:
        return None
    return dump_yaml(draccus.encode(value), flow=True)


def _keys_named(cls: type, name: str) -> list[str]:
    keys = {setting.key.rpartition(".")[2]: setting.key for setting in settings(cls)}
    return [keys[near] for near in get_close_matches(name, keys, n=1)]


def _annotation(cls: type, key: Key) -> Any:
    """The type at a dotted key given on the command line, `Any` below free mappings."""
    annotation: Any = cls
    for depth, name in enumerate(key):
        members = typing.get_args(annotation) if is_union(annotation) else (annotation,)
        if Any in members or dict in members:
            return Any
        fields = {n: hint for one in members if dataclasses.is_dataclass(one) for n, hint in _hints(one).items()}
        items = [typing.get_args(member)[1] for member in members if typing.get_origin(member) is dict]
        if name in fields:
            annotation = fields[name]
        elif items:
            annotation = items[0]
        elif fields or depth == 0:
            reader = Reader(lambda _: COMMAND_LINE, lambda name: _keys_named(cls, name))
            raise reader.unknown(key[: depth + 1], list(fields))
        else:
            what = f'"{".".join(key[:depth])}" has no keys of its own'
            raise ConfigError(what, where=COMMAND_LINE, fix=f"It is {type_name(annotation)}")
    return annotation


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _override_value(text: str, annotation: Any, key: Key) -> Any:
    """YAML, or the text itself where only that fits: `question=Is it 3 # or 4: which?` needs no quotes."""
    try:
        value = parse_yaml(text, f"{COMMAND_LINE}: {'.'.join(key)}")
    except ConfigError:
        if _accepts(annotation, text, key):
            return text
        raise
    if isinstance(value, str) and text.strip()[:1] not in ("'", '"'):
        value = text
    return text if not _accepts(annotation, value, key) and _accepts(annotation, text, key) else value


def _accepts(annotation: Any, value: Any, key: Key) -> bool:
    try:
        Reader(lambda _: COMMAND_LINE).value(annotation, value, key)
    except ConfigError:
        return False
    return True
