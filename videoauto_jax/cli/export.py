"""`videoauto export`: a training checkpoint as an HF folder."""

import dataclasses
from pathlib import Path
from typing import Literal

from flax import nnx
from rich import print as show
from rich.markup import escape

from videoauto_jax.base import check_base
from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.config import load_config
from videoauto_jax.distributed import refuse_processes
from videoauto_jax.errors import ModelError, UsageError
from videoauto_jax.files import whole_folder
from videoauto_jax.models.config import read_config
from videoauto_jax.models.hf import abstract_model, lazy_parameters, save_parameters
from videoauto_jax.models.lazy import LazyParameter
from videoauto_jax.models.qwen_vl import QwenVL, parameter_paths
from videoauto_jax.recipes import load_recipe
from videoauto_jax.train.lora import attach_adapters, merged_parameters, save_adapters
from videoauto_jax.train.recipe import GRPOConfig, RunConfig, SFTConfig


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """One export.

    Attributes:
        run: folder of a training run, its `checkpoints` folder, or one checkpoint in it.
        output: folder to write; new or empty.
        step: which checkpoint; null: the newest.
        base: the HF folder that the run started from, if it has moved since.
        dtype: dtype of the written tensors; `base`: each as in the base; null: as they were trained, float32.
    """

    run: str
    output: str
    step: int | None = None
    base: str | None = None
    dtype: Literal["base", "bfloat16", "float32"] | None = None


CONFIG = ExportConfig
HELP = "Writes a training checkpoint as a Hugging Face model folder."
POSITIONAL = ("run", "output")


def run(config: ExportConfig, *, force: bool) -> None:
    """Writes the model the run started from with the checkpoint's trained weights, one tensor at a time."""
    refuse_processes("an export", fix="Run it once, outside of the job")
    folder, step = find_run(Path(config.run))
    recipe = read_run(folder)
    base, fix = config.base or recipe.model, "Add base=FOLDER: the model that the run started from"
    try:
        check_base(folder, base, fix=fix)
    except ModelError:
        raise UsageError(f"the run started from {base}, which is not there", where=folder, fix=fix) from None
    dtype = "like" if config.dtype == "base" else config.dtype
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = step if config.step is None else config.step
        step = checkpoints.latest() if step is None else step
        weights, adapted = _weights(recipe, base, checkpoints, step)
        with whole_folder(config.output, force, inputs=[folder / "checkpoints", base]) as output:
            if adapted is not None:
                save_adapters(adapted, recipe.lora, output / "adapter", base=base)
            save_parameters(weights, read_config(base), output, like=base, dtype=dtype)
    show(f"step {step} is in [bold]{escape(str(output))}[/]")


def _weights(
    recipe: RunConfig, base: str, checkpoints: Checkpoints, step: int | None
) -> tuple[dict[str, LazyParameter], QwenVL | None]:
    """The parameters of the trained model, none of them read yet; with LoRA also a model of which only the adapters are
    more than shapes."""
    frozen, model = lazy_parameters(base), abstract_model(read_config(base), "float32", "float32")
    if recipe.lora is None:
        _, trainable, _ = nnx.split(model, recipe.trains, ...)
        trained = checkpoints.lazy(step, like={"trainable": trainable})["trainable"]
        return frozen | parameter_paths(trained), None
    attach_adapters(model, recipe.lora, recipe.seed)
    graph, trainable, rest = nnx.split(model, recipe.trains, ...)
    trained, _ = checkpoints.restore(step, like={"trainable": trainable}, partial=True)
    model = nnx.merge(graph, trained["trainable"], rest)
    return merged_parameters(model, recipe.lora, frozen), model


def find_run(path: Path) -> tuple[Path, int | None]:
    """The folder of a run, and the step if `path` is one checkpoint.

    Raises:
        UsageError: `path` is no training run.
    """
    folder, step = path, None
    if path.name == "checkpoints":
        folder = path.parent
    elif path.parent.name == "checkpoints" and path.name.isdecimal():
        folder, step = path.parent.parent, int(path.name)
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        return folder, step
    if not path.exists():
        raise UsageError("there is no such folder", where=path, fix="Check the path")
    known = "It is an HF model folder already" if (path / "config.json").is_file() else "Name a folder of train or sft"
    raise UsageError("not a training run: config.yaml and checkpoints/ are missing", where=path, fix=known)


def read_run(folder: Path) -> RunConfig:
    """The recipe that a run was started with."""
    path = folder / "config.yaml"
    kind = GRPOConfig if "rollout" in load_recipe(path).values else SFTConfig
    return load_config(kind, path)
