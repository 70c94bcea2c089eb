"""The command line: `videoauto VERB [-c RECIPE] [key=value ...] [--force] [--debug]`.

A verb is a module with `CONFIG` (a dataclass), `HELP` (one line), `run(config, *, force)`, and, where it takes words
without a key, `POSITIONAL` (the keys they fill, in order). A verb with verbs of its own (`eval compare`) names them in
`VERBS`, as here. It is imported when it is asked for.
"""

import ast
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.text import Text

from videoauto_jax.cli.usage import show_overview, show_verb
from videoauto_jax.config import load_config
from videoauto_jax.errors import ConfigError, UsageError, explain
from videoauto_jax.recipes import load_recipe

VERBS = {
    "quickstart": "videoauto_jax.cli.quickstart.verb",
    "sft": "videoauto_jax.cli.sft",
    "train": "videoauto_jax.cli.train",
    "eval": "videoauto_jax.cli.eval",
    "data": "videoauto_jax.cli.data",
    "ask": "videoauto_jax.cli.ask",
    "export": "videoauto_jax.cli.export",
    "import": "videoauto_jax.cli.import_",
}

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=", re.ASCII)


@dataclass
class Command:
    """A command line taken apart; `unknown` is its first option that does not exist."""

    verb: str | None = None
    recipe: str | None = None
    words: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    force: bool = False
    debug: bool = False
    help: bool = False
    unknown: str = ""


def main(arguments: Sequence[str] | None = None, verbs: Mapping[str, str] = VERBS) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failure, 2 for wrong usage, 130 when interrupted.

    Args:
        arguments: the words after `videoauto`; those of the process when None.
        verbs: verb -> module.

    Raises:
        Exception: whatever the verb raised, with `--debug`.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # its first is that there is no torch
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True, highlight=False)
    try:
        _run(arguments, verbs)
    except KeyboardInterrupt:
        console.print("interrupted; the same command resumes", style="yellow")
        return 130
    except Exception as error:
        if "--debug" in arguments:
            raise
        status, line = explain(error)
        console.print(Text(f"error: {line}", style="red"), soft_wrap=True)
        return status
    return 0


def parse(arguments: Sequence[str]) -> Command:
    """Takes a command line apart. Options may stand anywhere; after `--` every word is a positional one.

    Raises:
        UsageError: `-c` without a recipe.
    """
    command, rest = Command(), list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            command.words += rest
            break
        if word in ("-c", "--config"):
            if not rest:
                raise UsageError(f"{word} needs a recipe", fix="For example -c quickstart/train")
            command.recipe = rest.pop(0)
        elif word in ("-h", "--help"):
            command.help = True
        elif word in ("--force", "--debug"):
            setattr(command, word[2:], True)
        elif word.startswith("-") and len(word) > 1:
            command.unknown = command.unknown or word
        elif command.verb is None:
            command.verb = word
        else:
            (command.overrides if _OVERRIDE.match(word) else command.words).append(word)
    return command


def _run(arguments: Sequence[str], verbs: Mapping[str, str]) -> None:
    command = parse(arguments)
    if command.verb is None and (command.help or not arguments):
        show_overview({verb: summary(module) for verb, module in verbs.items()})
        return
    if command.verb not in verbs:
        near = get_close_matches(command.verb or "", verbs, n=1)
        fix = f'Did you mean "{near[0]}"?' if near else f"Verbs: {', '.join(verbs)}"
        raise UsageError(f'unknown verb "{command.verb}"' if command.verb else "no verb was given", fix=fix)
    module = import_module(verbs[command.verb])
    inner = getattr(module, "VERBS", {})
    if command.unknown:
        raise _unknown_option(command, inner)
    if command.words and command.words[0] in inner:
        word = command.words.pop(0)
        command.verb, module = f"{command.verb} {word}", import_module(inner[word])
        inner = getattr(module, "VERBS", {})
    if command.help:
        show_verb(command.verb, module, {word: summary(name) for word, name in inner.items()})
        return
    overrides = [*_positional(command, module), *command.overrides]
    try:
        config = load_config(module.CONFIG, command.recipe, overrides)
    except ConfigError:
        _check_verb(command, module, verbs)
        raise
    module.run(config, force=command.force)


def _unknown_option(command: Command, inner: Mapping[str, str]) -> UsageError:
    key = command.unknown.strip("-").partition("=")[0].replace("-", "_")
    fix = f"Options are -c, --force, --debug and --help; settings are written {key}=value"
    if key in inner:
        fix = f"Write videoauto {command.verb} {key}"
    return UsageError(f"unknown option {command.unknown}", fix=fix)


def _check_verb(command: Command, module: ModuleType, verbs: Mapping[str, str]) -> None:
    """
    Raises:
        UsageError: the recipe is one of another verb.
        ConfigError: it is none at all.
    """
    if command.recipe is None or load_recipe(command.recipe) and _loads(module.CONFIG, command.recipe):
        return
    for verb, name in verbs.items():
        if _loads(import_module(name).CONFIG, command.recipe):
            fix = f"Write videoauto {verb} -c {command.recipe}"
            raise UsageError(f'"{command.recipe}" is no recipe of {command.verb}', fix=fix)


def _loads(kind: type, recipe: str) -> bool:
    try:
        return bool(load_config(kind, recipe))
    except ConfigError:
        return False


def _positional(command: Command, module: ModuleType) -> list[str]:
    names = getattr(module, "POSITIONAL", ())
    if len(command.words) > len(names):
        extra = command.words[len(names)]
        takes = " ".join(name.upper() for name in names)
        fix = f"{command.verb} takes {f'{takes}, then ' if takes else ''}key=value; quote what holds spaces"
        near = get_close_matches(command.words[0], getattr(module, "VERBS", {}), n=1)
        if Path(extra).suffix in (".yaml", ".yml"):
            fix = f"A recipe is given as -c {extra}"
        elif near:
            fix = f'Did you mean "{command.verb} {near[0]}"?'
        raise UsageError(f'unexpected "{extra}"', fix=fix)
    return [f"{name}={word}" for name, word in zip(names, command.words)]


def summary(module: str) -> str:
    """The `HELP` of a verb's module, read from its source: importing every verb would import jax."""
    source = Path(find_spec(module).origin).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "HELP":
            return ast.literal_eval(node.value)
    return ""


if __name__ == "__main__":
    sys.exit(main())
