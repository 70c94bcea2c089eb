"""The folder of a training run, and how a run is taken up again where it stopped.

config.yaml     the recipe, written first; the same recipe continues, another one is refused
checkpoints/    Orbax: trainable parameters, optimiser state, position in the data
metrics.jsonl   one line per step; lines after the restored step are dropped
model/          HF folder, written when the run has ended
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.config import dump_config
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.files import claim_folder
from videoauto_jax.models.hf import save_model
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.train.metrics import MetricsLogger
from videoauto_jax.train.recipe import RunConfig
from videoauto_jax.train.step import Learner, TrainState

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after every step with steps done, steps in all, and the step's metrics."""


class Run:
    """One training run on disk.

    Args:
        config: the recipe; `config.output` is the folder.
        force: begin anew in a folder that holds another run.
        lines: print a line for every step.

    Raises:
        UsageError: the folder holds something else, or a run of another recipe.
    """

    def __init__(self, config: RunConfig, *, force: bool = False, lines: bool = True):
        fix = "Name another output=, or add --force to begin anew and lose that run"
        recipe = dump_config(config)
        self.config = config
        self.folder = claim_folder(config.output, recipe, holds="a run of another recipe", fix=fix, force=force)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=config.keep)
        self.logger = MetricsLogger(self.folder, lines=lines)

    def restore(self, state: TrainState, stream: PromptStream) -> tuple[TrainState, int]:
        """The newest checkpoint, or `state` and 0 if there is none. The stream and the metrics go back with it."""
        step = self.checkpoints.latest()
        if step is None:
            self.logger.rewind(0)
            return state, 0
        restored, facts = self.checkpoints.restore(step, like=state)
        stream.restore(facts["data"])
        self.logger.rewind(step)
        return restored, step

    def save(self, step: int, state: TrainState, position: dict) -> None:
        """Saves in the background; the state may be donated afterwards. `position` is the stream's at this step."""
        if self.checkpoints.latest() != step:
            self.checkpoints.save(step, state, {"data": position})

    @property
    def model_folder(self) -> Path:
        """Where the trained model is exported."""
        return self.folder / "model"

    def export(self, model: QwenVL) -> None:
        """Writes the trained model as an HF folder; `config.json` comes last and says that it is whole."""
        save_model(model, self.model_folder, like=self.config.model)

    def finished(self) -> bool:
        """Whether the run has ended and its model is written."""
        return (self.model_folder / "config.json").exists()

    def close(self) -> None:
        """Waits for the save in flight and closes the metrics."""
        self.checkpoints.close()
        self.logger.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Trainer(Protocol):
    """What `train_run` drives: one unit of work between two possible checkpoints."""

    total: int
    mesh: jax.sharding.Mesh
    learner: Learner
    stream: PromptStream

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        """Does unit number `index`; returns the new state and the unit's metrics."""


def train_run(run: Run, trainer: Trainer, progress: Progress | None = None) -> None:
    """Takes a run from its newest checkpoint to its end, and writes the trained model.

    A checkpoint is written every `save_every` units, at the end, and when the run is interrupted: what a second start
    then does is exactly what an uninterrupted run would have done.
    """
    learner, stream = trainer.learner, trainer.stream
    state, done = run.restore(learner.initial_state(), stream)
    saved, position = done, stream.state()
    try:
        while done < trainer.total:
            with jax.set_mesh(trainer.mesh):  # without it no activation would be kept on the batch axes
                state, metrics = trainer.step(state, done)
            # Taken here: an interrupted unit has drawn prompts that a second start has to draw again.
            done, position = done + 1, stream.state()
            run.logger.log(done, metrics)
            if progress is not None:
                progress(done, trainer.total, metrics)
            if done % run.config.save_every == 0 or done == trainer.total:
                run.save(done, state, position)
                saved = done
    finally:
        stream.close()
        if done > saved and not _donated(state):
            run.save(done, state, position)
        run.checkpoints.wait()
    run.export(learner.model(state.trainable))


def _donated(state: TrainState) -> bool:
    """Whether an interrupted step had already taken the state's buffers."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
