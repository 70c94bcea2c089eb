"""Recipes: YAML files composed with `base:` and overridden by `key=value`, with the origin of every value kept.

YAML here is the 1.2 core schema: `1e-5` is a number, `on`, `1:30` and `2026-01-01` are text.
"""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from videoauto_jax.errors import ConfigError

Key = tuple[str, ...]

_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}


for _tag, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _first_letters = ["" if letter == "\0" else letter for letter in _first]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first_letters)


@dataclass
class Tree:
    """Untyped settings: nested dicts, and for each dotted key the place that set it last."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    def origin(self, key: Key) -> str | None:
        """The place that set `key`, or the nearest section around it."""
        return next((self.origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.origins), None)

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Sets one value; a mapping is merged into the one that stands there."""
        self._claim(key, value, origin)
        for name in reversed(key):
            value = {name: value}
        _merge(self.values, value)

    def _claim(self, key: Key, value: Any, origin: str) -> None:
        self.origins[key] = origin
        for name, item in value.items() if isinstance(value, dict) else ():
            self._claim((*key, str(name)), item, origin)


def load_recipe(name: str | Path) -> Tree:
    """Reads a recipe and everything it is based on.

    Args:
        name: a path, or the name of a packaged recipe such as `quickstart/train`; `.yaml` may be left out.

    Raises:
        ConfigError: no such recipe (names the nearest packaged one), broken YAML (file:line), or a cycle of bases.
    """
    return _load(find_recipe(name), ())


def find_recipe(name: str | Path, beside: Path | None = None) -> Path:
    """The file of a recipe: beside the recipe that names it, or in the working directory, else in the package."""
    packaged = packaged_recipes()
    for root in (beside or Path(), packaged):
        for candidate in (root / name, root / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    names = [path.relative_to(packaged).with_suffix("").as_posix() for path in sorted(packaged.rglob("*.yaml"))]
    near = get_close_matches(str(name), names, n=1)
    fix = f'Did you mean "{near[0]}"?' if near else f"Give a file or one of: {', '.join(names) or 'none is packaged'}"
    raise ConfigError(f'there is no recipe "{name}"', where=beside, fix=fix)


def packaged_recipes() -> Path:
    """The folder of the recipes that come with the package."""
    return Path(str(resources.files("videoauto_jax.configs")))


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a piece of YAML. Raises ConfigError with the line."""
    return _parse(text, origin, lines=False)[0]


def dump_yaml(value: Any, *, flow: bool = False) -> str:
    """YAML that `parse_yaml` reads back as the same value, keys in their order; with `flow` on one line."""
    width = float("inf") if flow else 110
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)
    return text.removesuffix("\n...\n").strip() if flow else text


def _load(path: Path, parents: tuple[Path, ...]) -> Tree:
    path = path.resolve()
    if path in parents:
        chain = " -> ".join(str(one) for one in (*parents[parents.index(path) :], path))
        raise ConfigError(f"recipes are based on each other: {chain}", fix="Remove one `base:`")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe cannot be read: {error}", where=path, fix="Check the file") from error
    values, origins = _parse(text, str(path), lines=True)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError("a recipe holds `key: value` lines", where=path, fix="See the packaged recipes")
    tree = Tree()
    for base in _bases(values.pop("base", []), path):
        parent = _load(find_recipe(base, beside=path.parent), (*parents, path))
        _merge(tree.values, parent.values)
        tree.origins |= parent.origins
    _merge(tree.values, values)
    tree.origins |= origins
    return tree


def _bases(value: Any, path: Path) -> list[str]:
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError("`base` names one recipe or a list of them", where=path, fix="For example `base: train/grpo`")
    return bases


def _merge(into: dict, new: dict) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _parse(text: str, origin: str, *, lines: bool) -> tuple[Any, dict[Key, str]]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        origins: dict[Key, str] = {}
        _mark(node, (), origin, lines, origins)
        return loader.construct_document(node), origins
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if lines and mark else origin
        problem = getattr(error, "problem", None) or "not readable"
        raise ConfigError(f"broken YAML: {problem}", where=where, fix="Mend this line") from error
    finally:
        loader.dispose()


def _mark(node: yaml.Node, key: Key, origin: str, lines: bool, origins: dict[Key, str]) -> None:
    """Notes the place of every key of nested mappings; refuses a key given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for name, value in node.value:
        place = f"{origin}:{name.start_mark.line + 1}" if lines else origin
        inner = (*key, str(name.value))
        if inner in seen:
            raise ConfigError(f'"{".".join(inner)}" is given twice', where=place, fix="Keep one")
        seen.add(inner)
        origins[inner] = place
        _mark(value, inner, origin, lines, origins)
