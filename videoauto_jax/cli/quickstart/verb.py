"""`videoauto quickstart`: the paper in miniature, on a CPU, in minutes."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rich import print as show
from rich.markup import escape

from videoauto_jax.cli.quickstart.spec import WorldSpec, check
from videoauto_jax.cli.quickstart.stages import Quickstart, recipes
from videoauto_jax.cli.quickstart.tiny import TinySpec
from videoauto_jax.cli.quickstart.world import version as world_version
from videoauto_jax.config import dump_config
from videoauto_jax.distributed import refuse_processes
from videoauto_jax.files import claim_folder


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
    """One quickstart.

    Attributes:
        seed: of the world, the model, the order of data and all sampling.
        output: folder of everything.
        world: how large the video world is.
        model: how large the model is.
        lamp, look, study, warmup, train, eval: changes to the packaged recipes of these names in quickstart/, such as
            `train.rounds=30` or `train.rollout.branches=8`.
    """

    seed: int = 0
    output: str = "runs/quickstart"
    world: WorldSpec = WorldSpec()
    model: TinySpec = TinySpec()
    lamp: dict[str, Any] = dataclasses.field(default_factory=dict)
    look: dict[str, Any] = dataclasses.field(default_factory=dict)
    study: dict[str, Any] = dataclasses.field(default_factory=dict)
    warmup: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    eval: dict[str, Any] = dataclasses.field(default_factory=dict)


CONFIG = QuickstartConfig
RECIPE = "quickstart.yaml"
HELP = "Makes a video world and a tiny Qwen3-VL, trains it with GRPO, evaluates and reports: minutes on a CPU."


def run(config: QuickstartConfig, *, force: bool) -> None:
    """Runs every stage that is not done yet."""
    refuse_processes("the quickstart", fix="Run it once, outside of the job")
    check(config.seed, config.world)
    folder = _claim(config, force)
    summary = Quickstart(config, folder).run()
    met = [bar["met"] for bar in summary["bars"].values()]
    show(f"{sum(met)} of {len(met)} bars met in {sum(summary['seconds'].values()) / 60:.1f} minutes; "
         f"open [bold]{escape(str(folder / 'report.html'))}[/]")  # fmt: skip


def _claim(config: QuickstartConfig, force: bool) -> Path:
    """The run's folder; a finished run of other settings steps aside, an unfinished one is not touched."""
    # A run of an earlier version of this package is another one.
    made_by = world_version() + "".join(map(dump_config, recipes(config).values()))
    version = hashlib.sha256(made_by.encode()).hexdigest()
    folder, text = Path(config.output), f"{dump_config(config)}# version {version}\n"
    recipe = folder / RECIPE
    other = recipe.exists() and recipe.read_text() != text
    if other and (folder / "summary.json").exists() and not force:
        aside = _free_name(folder, json.loads((folder / "summary.json").read_text())["seed"])
        folder.rename(aside)
        show(f"the finished run of other settings or of an earlier version is in [bold]{escape(str(aside))}[/] now")
    fix = "Finish it with the command it began with, name another output=, or lose it with --force"
    holds = "an unfinished quickstart of other settings or of another version"
    return claim_folder(folder, text, holds=holds, fix=fix, force=force, name=RECIPE)


def _free_name(folder: Path, seed: int) -> Path:
    suffixes = ("", *(f"-{n}" for n in range(2, 1000)))
    names = (folder.with_name(f"{folder.name}-seed{seed}{suffix}") for suffix in suffixes)
    return next(name for name in names if not name.exists())
