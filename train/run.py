"""The folder of a training run, and how a run is taken up again where it stopped.

config.yaml     the recipe, written first; the same recipe continues, another one is refused
base.txt        the fingerprint of the model it started from
checkpoints/    Orbax: trainable parameters, optimiser state, position in the data
metrics.jsonl   one line per step; lines after the restored step are dropped
skipped.jsonl   samples left out when the run began, and samples skipped since
samples.jsonl   sample rollouts; those after the restored step are dropped
model/          HF folder, written when the run has ended
adapter/        with LoRA: the adapters alone, as the peft library reads them

In a job of several processes all see the same folder; the main process writes everything but the checkpoints, of which
each writes the parts that lie on its devices.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from videoauto_jax.base import keep_base
from videoauto_jax.checkpoint import Checkpoints
from videoauto_jax.config import dump_config
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.distributed import agree, any_process, exchange, is_main, on_main
from videoauto_jax.errors import CheckpointError, ConfigError
from videoauto_jax.fate import one_fate
from videoauto_jax.files import claim_folder
from videoauto_jax.models.hf import save_model
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.train.journal import rewind_samples
from videoauto_jax.train.lora import merge_adapters, save_adapters
from videoauto_jax.train.metrics import MetricsLogger
from videoauto_jax.train.pace import Clock
from videoauto_jax.train.recipe import RunConfig
from videoauto_jax.train.rollout_metrics import SCORE
from videoauto_jax.train.step import Learner, TrainState
from videoauto_jax.train.stopping import Stopped, StopRequest

SKIP_LOG = "skipped.jsonl"
Progress = Callable[[int, int, dict[str, float]], None]
"""Called after every step with steps done, steps in all, and the step's metrics."""


def decided_samples(config: RunConfig, force: bool) -> Path | None:
    """The file that says which samples a run leaves out, if the recipe's folder holds one that will be taken up."""
    checkpoints = Path(config.output) / "checkpoints"
    begun = not force and checkpoints.is_dir() and any(path.name.isdecimal() for path in checkpoints.iterdir())
    return Path(config.output) / SKIP_LOG if begun else None


def check_batch(found: int, what: str, size: int, key: str) -> None:
    """
    Raises:
        ConfigError: there are fewer of what is drawn than one batch takes; names the key to change.
    """
    if found < size:
        fix = f"Set {key} to {found} or less, or add data" if found else "Check the data sets and what is left out"
        raise ConfigError(f"{found} {what} do not fill one batch of {size}", where=key, fix=fix)


class Run:
    """One training run on disk. The processes of a job call its methods together.

    Args:
        config: the recipe; `config.output` is the folder.
        force: begin anew; what the folder holds of a run is lost.
        lines: print a line for every step.

    Raises:
        UsageError: the folder holds something else, a run of another recipe, or one that began with other weights.
    """

    def __init__(self, config: RunConfig, *, force: bool = False, lines: bool = True):
        self.config, self.folder = config, on_main(lambda: _claim(config, force))
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=config.keep, best="score")
        self.logger = MetricsLogger(self.folder, lines=lines, wandb=config.wandb)

    def restore(self, state: TrainState, trainer: "Trainer") -> tuple[TrainState, int]:
        """The newest checkpoint, in the place of `state`, or `state` and 0 if there is none. Stream, counters and what
        has been written of later steps go back with it."""
        step = self.checkpoints.latest() or 0
        if step:
            initial, (state, facts) = state, self.checkpoints.restore(step, like=state)
            _free(initial)
            trainer.stream.restore(facts["data"])
            trainer.counters.update(facts["counters"])
        self.logger.rewind(step)
        on_main(lambda: rewind_samples(self.folder, step))
        return state, step

    def save(self, step: int, state: TrainState, facts: dict) -> bool:
        """Saves in the background; the state may be donated afterwards. Returns whether the save has begun.

        A save that fails is reported on the console and ends nothing: the next one may find space again.

        Args:
            facts: position in the data and counters at this step, and a score if the state has been evaluated.
        """
        for _ in range(2):  # the first complaint may be about the save before this one
            complaints = [text for text in exchange(self._try_to_save(step, state, facts)) if text]
            if not complaints:
                return True
            self.logger.complain(f"NOT SAVED, training goes on: {complaints[0]}")
        return False

    def _try_to_save(self, step: int, state: TrainState, facts: dict) -> str:
        """Returns what went wrong in this process."""
        try:
            if self.checkpoints.latest() != step:
                self.checkpoints.save(step, state, facts)
            return ""
        except CheckpointError as error:
            return str(error)

    @property
    def model_folder(self) -> Path:
        """Where the trained model is exported."""
        return self.folder / "model"

    def export(self, model: QwenVL) -> None:
        """Writes the trained model as an HF folder; `config.json` comes last and says that it is whole."""
        if self.config.lora is not None:
            save_adapters(model, self.config.lora, self.folder / "adapter", base=self.config.model)
            merge_adapters(model, self.config.lora)
        save_model(model, self.model_folder, like=self.config.model)
        any_process(False)  # the others wait for the one that writes

    def finished(self) -> bool:
        """Whether the run has ended and its model is written."""
        return on_main(lambda: (self.model_folder / "config.json").exists())

    def close(self) -> None:
        """Waits for the save in flight and closes the metrics."""
        self.checkpoints.close()
        self.logger.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:  # a process that fails alone would wait for the others in vain
            self.close()


def _claim(config: RunConfig, force: bool) -> Path:
    """The folder of a run, made or found, which then says what recipe and weights it rests on."""
    fix = "Name another output=, or add --force to begin anew and lose that run"
    holds, recipe = "a run of another recipe", dump_config(config)
    folder = claim_folder(config.output, recipe, holds=holds, fix=fix, force=force, inputs=[config.model])
    keep_base(folder, config.model, fix="Put those weights back, or name another output=")
    return folder


class Trainer(Protocol):
    """What `train_run` drives: one unit of work between two possible checkpoints.

    Attributes:
        counters: JSON numbers that a checkpoint keeps, such as tokens seen.
        stop: checked by `step` wherever the state is still that of its beginning.
    """

    total: int
    mesh: jax.sharding.Mesh
    learner: Learner
    stream: PromptStream
    counters: dict[str, float]
    stop: StopRequest

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        """Does unit number `index`; returns the new state and the unit's metrics."""

    def evaluate(self, state: TrainState, done: int) -> dict[str, Any]:
        """Metrics of held-out samples if the unit is one after which to evaluate, else none."""


def train_run(run: Run, trainer: Trainer, progress: Progress | None = None) -> bool:
    """Takes a run from its newest checkpoint to its end, and writes the trained model.

    A checkpoint is written every `save_every` units, with every evaluation, at the end, and when the run is
    interrupted: what a second start then does is exactly what an uninterrupted run would have done.

    Returns:
        Whether the run has ended; False if SIGTERM stopped it.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it; everything is saved unless it was pressed twice.
    """
    state, done = run.restore(trainer.learner.initial_state(), trainer)
    saved, facts, between = done, _facts(trainer), Clock()
    agree((done, facts), "checkpoints or data", "All of them have to see the same folders")
    try:
        with trainer.stop, one_fate(), contextlib.suppress(Stopped):
            while done < trainer.total and not trainer.stop.requested():
                with jax.set_mesh(trainer.mesh):  # without it no activation would be kept on the batch axes
                    state, metrics = trainer.step(state, done)
                    evaluated = trainer.evaluate(state, done + 1)
                # Taken here: an interrupted unit has drawn prompts that a second start has to draw again.
                done, facts = done + 1, _facts(trainer, evaluated)
                run.logger.log(done, {**metrics, **evaluated, **between.pairs()})
                between = Clock()  # a line is written before its checkpoint: the next one tells how long that took
                if progress is not None and is_main():
                    progress(done, trainer.total, metrics)
                if done % run.config.save_every == 0 or done == trainer.total or evaluated:
                    with between("save"):
                        saved = done if run.save(done, state, facts) else saved
    finally:
        trainer.stream.close()
        if done > saved and not _donated(state):
            run.save(done, state, facts)
        run.checkpoints.wait()
    if done == trainer.total:
        run.export(trainer.learner.model(state.trainable))
    elif any_process(trainer.stop.interrupted):
        raise KeyboardInterrupt
    return done == trainer.total


def _facts(trainer: Trainer, evaluated: dict | None = None) -> dict:
    """What a checkpoint says besides its arrays."""
    facts = {"data": trainer.stream.state(), "counters": dict(trainer.counters)}
    if evaluated:
        total, count = evaluated[SCORE]
        facts["score"] = float(total / count)
    return facts


def _free(state: TrainState) -> None:
    """Gives memory back that others may still hold on to, though nobody is going to read it."""
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            leaf.delete()


def _donated(state: TrainState) -> bool:
    """Whether an interrupted step had already taken the state's buffers."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
