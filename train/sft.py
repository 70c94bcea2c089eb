"""Supervised fine-tuning on demonstrations."""

from pathlib import Path

from videoauto_jax.data.manifest import usable_samples
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.fate import one_fate
from videoauto_jax.models.hf import load_model
from videoauto_jax.sharding import make_mesh, place_rows
from videoauto_jax.train.bundles import BundleEncoder, make_bundles, pack_bundles, with_targets
from videoauto_jax.train.journal import check_finite
from videoauto_jax.train.recipe import SFTConfig
from videoauto_jax.train.rollout import place_groups
from videoauto_jax.train.run import Progress, Run, train_run
from videoauto_jax.train.step import Learner, TrainState
from videoauto_jax.train.stopping import StopRequest


class SFTTrainer:
    """One optimiser step per unit.

    Args:
        config: the recipe.
        learner: the compiled steps.
        stream: bundles.
        processor: pads prompts.
        mesh: where arrays go.
        folder: of the run.
    """

    def __init__(self, config: SFTConfig, learner: Learner, stream: PromptStream, processor, mesh, folder: Path):
        self.config, self.learner, self.stream, self.folder = config, learner, stream, folder
        self.processor, self.mesh, self.total = processor, mesh, config.steps
        self.counters, self.stop = {}, StopRequest()

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict]:
        data = self.config.data
        items = next(self.stream)
        batch, weights = pack_bundles(
            self.processor,
            [bundle for _, _, bundle in items],
            bound=self.config.max_response_tokens,
            count=self.config.questions,
            prompt_lengths=data.prompt_lengths,
            patch_counts=data.patch_counts,
            branch_lengths=data.branch_lengths,
        )
        batch, weights = place_groups(batch, self.mesh), place_rows(weights, self.mesh)
        state, update = self.learner.sft_step(state, self.learner.frozen, batch, weights)
        ids = [sample.id for _, sample, _ in items]
        check_finite(update, (batch, weights), ids, self.folder, self.config.max_nonfinite)
        return state, update

    def evaluate(self, state: TrainState, done: int) -> dict:
        """Nothing: `videoauto eval` scores the checkpoints of a supervised run."""
        del state, done
        return {}


@one_fate()
def train_sft(config: SFTConfig, *, force: bool = False, progress: Progress | None = None, lines: bool = True) -> bool:
    """Runs a recipe, or takes it up where it stopped; writes `output/model`.

    The model and the data are looked at before the folder is claimed: a wrong path leaves nothing behind.

    Args:
        config: the recipe.
        force: begin anew; what the folder holds of a run is lost.
        progress: told after every step.
        lines: print a line for every step.

    Returns:
        Whether the run has ended; False if SIGTERM stopped it.
    """
    mesh = make_mesh(config.mesh)
    processor = config.data.processor(config.model)
    bundles = make_bundles(with_targets(usable_samples(config.data, processor), config.target), config.questions)
    with Run(config, force=force, lines=lines) as run:
        if run.finished():
            return True
        encoder = BundleEncoder(processor, config.max_response_tokens)
        drawn = config.data.stream(config.rows, config.seed)
        stream = PromptStream(bundles, encoder, drawn, skip_log=run.folder / "skipped.jsonl")
        model = load_model(config.model, mesh, config.dtype, param_dtype=config.param_dtype)
        learner = Learner.create(model, config, total_steps=config.steps)
        trainer = SFTTrainer(config, learner, stream, processor, mesh, run.folder)
        return train_run(run, trainer, progress)
