"""What `videoauto --help` and `videoauto VERB --help` print, generated from the verbs themselves."""

from collections.abc import Mapping
from types import ModuleType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videoauto_jax.config import settings

_OPTIONS = {
    "-c RECIPE": "a YAML file, or the name of a packaged recipe",
    "key=value": "sets one key; nested ones are dotted, values are YAML",
    "--force": "replaces what an earlier run left in the output folder",
    "--debug": "shows the traceback of an error",
}


def show_overview(summaries: Mapping[str, str]) -> None:
    """Prints the verbs with a line each, and the options that all of them take."""
    console = _console("usage: videoauto VERB [-c RECIPE] [key=value ...] [--force] [--debug]")
    _show(console, summaries)
    _show(console, _OPTIONS)
    console.print("\nvideoauto VERB --help lists the keys of a verb.")


def show_verb(verb: str, module: ModuleType, inner: Mapping[str, str]) -> None:
    """Prints a verb's line, the verbs inside of it with a line each, and its keys with types and defaults."""
    words = "".join(f" {name.upper()}" for name in getattr(module, "POSITIONAL", ()))
    console = _console(f"usage: videoauto {verb}{words} [-c RECIPE] [key=value ...] [--force] [--debug]")
    console.print(Text(f"\n{module.HELP}"))
    if inner:
        _show(console, {f"{verb} {word}": line for word, line in inner.items()})
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("key", "type", "default", ""):
        table.add_column(heading, overflow="fold")
    for setting in settings(module.CONFIG):
        default = "(to be given)" if setting.default is None else setting.default
        table.add_row(*map(Text, (setting.key, setting.type, default, setting.help)))
    console.print(table)


def _console(usage: str) -> Console:
    console = Console(highlight=False)
    console.print(Text(usage), soft_wrap=True)
    return console


def _show(console: Console, lines: Mapping[str, str]) -> None:
    console.print()
    table = Table(box=None, show_header=False, pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, line in lines.items():
        table.add_row(Text(name, style="bold"), Text(line))
    console.print(table)
