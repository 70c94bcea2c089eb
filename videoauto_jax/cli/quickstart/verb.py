"""`videoauto quickstart`: the paper in miniature, on a CPU, in minutes."""

import dataclasses
import json
from pathlib import Path

from rich import print as show
from rich.markup import escape

from videoauto_jax.cli.quickstart.spec import WorldSpec
from videoauto_jax.cli.quickstart.stages import Quickstart
from videoauto_jax.cli.quickstart.tiny import TinySpec
from videoauto_jax.config import dump_config
from videoauto_jax.errors import UsageError
from videoauto_jax.files import new_folder, write_atomic


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
    """One quickstart.

    Attributes:
        seed: of the world, the model, the order of data and all sampling.
        output: folder of everything.
        world: how large the video world is.
        model: how large the model is.
        look, warmup, train, eval: changes to the packaged recipes quickstart/look, warmup, train and eval, for example
            `train.rounds=30`.
    """

    seed: int = 0
    output: str = "runs/quickstart"
    world: WorldSpec = WorldSpec()
    model: TinySpec = TinySpec()
    look: dict[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    warmup: dict[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    train: dict[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    eval: dict[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)


CONFIG = QuickstartConfig
HELP = "Makes a video world and a tiny Qwen3-VL, trains it with GRPO, evaluates and reports: minutes on a CPU."


def run(config: QuickstartConfig, *, force: bool) -> None:
    """Runs every stage that is not done yet."""
    folder = _claim(config, force)
    summary = Quickstart(config, folder).run()
    met = [bar["met"] for bar in summary["bars"].values()]
    show(f"{sum(met)} of {len(met)} bars met in {sum(summary['seconds'].values()) / 60:.1f} minutes; "
         f"open [bold]{escape(str(folder / 'report.html'))}[/]")  # fmt: skip


def _claim(config: QuickstartConfig, force: bool) -> Path:
    folder, text = Path(config.output), dump_config(config)
    recipe = folder / "quickstart.yaml"
    if recipe.exists() and recipe.read_text() != text and not force:
        raise UsageError(
            "the output folder holds a quickstart of other settings",
            where=folder,
            fix=f"Name another output=, or add --force to begin anew (it was made with seed {_seed_of(folder)})",
        )
    if not recipe.exists() or recipe.read_text() != text:
        new_folder(folder, force=force)
        write_atomic(recipe, text)
    return folder


def _seed_of(folder: Path) -> object:
    try:
        return json.loads((folder / "world" / "world.json").read_text())["seed"]
    except (OSError, ValueError, KeyError):
        return "unknown"
