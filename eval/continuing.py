"""Whether a results folder goes on under a recipe: what may change between two starts, and what decides answers."""

import dataclasses
from pathlib import Path

from videoauto_jax.base import NOTE
from videoauto_jax.config import dump_config, load_config
from videoauto_jax.errors import ConfigError, UsageError
from videoauto_jax.eval.config import BenchmarkConfig, EvalConfig
from videoauto_jax.files import claim_folder, write_atomic

RECIPE = "config.yaml"
HARMLESS = frozenset((
    "output", "part", "strict_media", "published", "graders", "mesh", "data.workers", "data.prefetch",
    "data.prompt_lengths", "sampling.prompts", "sampling.prompt_lengths",
))  # fmt: skip
"""Keys that decide how fast answers come or what stands beside them, but not what is asked, answered or scored."""


def claim(config: EvalConfig, *, force: bool, fix: str) -> Path:
    """The folder of an evaluation: a new one, or one that began with a recipe whose answers are this one's.

    What may differ are the keys `HARMLESS`, and there may be more benchmarks; the folder then holds the new recipe. A
    folder without an answer goes on under any recipe, unless parts share it.

    Args:
        force: begin anew.
        fix: what to do about a folder that cannot go on.

    Raises:
        UsageError: the folder's answers are of another recipe; tells the first key that differs.
    """
    # What strict_media refuses is told before; a part is not the recipe's, which all parts share.
    recipe = dump_config(dataclasses.replace(config, part=None, strict_media=False))
    written = Path(config.output) / RECIPE
    if force or not written.exists():
        holds = "an evaluation with other settings"
        return claim_folder(config.output, recipe, holds=holds, fix=fix, force=force, inputs=[config.model])
    if config.part is None and not any(written.parent.glob("samples*.jsonl")):
        write_atomic(written, recipe)
        (written.parent / NOTE).unlink(missing_ok=True)
    elif found := difference(_read(written, fix), config):
        raise UsageError(f"the output folder holds an evaluation with other settings: {found}", where=written, fix=fix)
    elif written.read_text() != recipe:
        write_atomic(written, recipe)
    return written.parent


def difference(old: EvalConfig, new: EvalConfig) -> str | None:
    """The first setting for which answers of the one recipe are not those of the other; None if there is none."""
    before, now = _deciding(old), _deciding(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)} and is {now.get(key)}"
    for name in old.asked:
        if name not in new.asked:
            return f"{name} was evaluated and is no more"
        if _of_benchmark(old, name) != _of_benchmark(new, name):
            return f"benchmarks.{name} was {_of_benchmark(old, name)} and is {_of_benchmark(new, name)}"
    return None


def _deciding(config: EvalConfig) -> dict[str, object]:
    """What all answers depend on, by dotted key."""
    found: dict[str, object] = {}
    _flatten(dataclasses.asdict(config), "", found)
    own = ("benchmarks.", "only")
    return {key: value for key, value in found.items() if not key.startswith(own)}


def _flatten(values: dict, prefix: str, found: dict[str, object]) -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in HARMLESS:
            continue
        if isinstance(value, dict) and value:
            _flatten(value, f"{key}.", found)
        elif value != {}:
            found[key] = value


def _of_benchmark(config: EvalConfig, name: str) -> dict[str, object]:
    """What the answers to a benchmark depend on besides, as its own settings state it."""
    own = dataclasses.asdict(config.benchmarks.get(name, BenchmarkConfig()))
    return {key: value for key, value in own.items() if value != getattr(BenchmarkConfig(), key)}


def _read(written: Path, fix: str) -> EvalConfig:
    try:
        return load_config(EvalConfig, written)
    except ConfigError as error:
        what = f"the output folder holds an evaluation of another version: {error}"
        raise UsageError(what, where=written, fix=fix) from error
