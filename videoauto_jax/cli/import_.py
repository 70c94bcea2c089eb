"""`videoauto import`: an HF folder as a sharded checkpoint, which `export` turns back bit for bit."""

import dataclasses

from flax import nnx
from rich import print as show
from rich.markup import escape

from videoauto_jax.base import keep_base
from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.config import dump_config
from videoauto_jax.distributed import refuse_processes
from videoauto_jax.files import whole_folder, write_atomic
from videoauto_jax.models.config import resolve_folder
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.qwen_vl import parameter_paths
from videoauto_jax.sharding import MeshConfig, make_mesh
from videoauto_jax.train.parameters import TrainableConfig
from videoauto_jax.train.recipe import SFTConfig


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """One import.

    Attributes:
        model: HF folder.
        output: folder to write; new or empty.
        mesh: devices along each mesh axis, over which the checkpoint is written.
    """

    model: str
    output: str
    mesh: MeshConfig = MeshConfig()


CONFIG = ImportConfig
HELP = "Writes a Hugging Face model folder as a sharded checkpoint."
POSITIONAL = ("model", "output")


def run(config: ImportConfig, *, force: bool) -> None:
    """Writes what a training run of no steps leaves: all parameters, float32, as step 0."""
    refuse_processes("an import", fix="Run it once, outside of the job")
    folder = resolve_folder(config.model, weights=True).resolve()
    model = load_model(folder, make_mesh(config.mesh), dtype="float32")
    everything = TrainableConfig(vision=True)
    with whole_folder(config.output, force, inputs=[folder]) as output:
        recipe = SFTConfig(str(folder), str(output), mesh=config.mesh, trainable=everything)
        largest = max(array.nbytes for array in parameter_paths(model).values())
        with Checkpoints(output / "checkpoints", beside=largest) as checkpoints:
            checkpoints.save(0, {"trainable": nnx.split(model, everything, ...)[1]}, {}, wait=True)
        keep_base(output, folder, fix="Put those weights back")
        write_atomic(output / "config.yaml", dump_config(recipe))
    show(f"the checkpoint is in [bold]{escape(str(output))}[/]")
