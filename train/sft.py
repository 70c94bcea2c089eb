"""Supervised fine-tuning on demonstrations."""

from pathlib import Path

from jaxtyping import Array, Float

from videoauto_jax.data.processor import Processor
from videoauto_jax.data.selection import usable_samples, warn_about
from videoauto_jax.data.stream import PromptStream
from videoauto_jax.fate import one_fate
from videoauto_jax.models.config import TextConfig
from videoauto_jax.models.hf import load_model
from videoauto_jax.sharding import batch_shards, make_mesh, place_rows
from videoauto_jax.train.bundles import Bundle, BundleEncoder, make_bundles, pack_bundles, with_targets
from videoauto_jax.train.groups import GroupBatch
from videoauto_jax.train.journal import check_finite, warn_about_context, warn_about_shards
from videoauto_jax.train.metrics import Metrics
from videoauto_jax.train.optimizer import learning_rate_schedule, step_count
from videoauto_jax.train.pace import Clock, position, speed
from videoauto_jax.train.recipe import SFTConfig
from videoauto_jax.train.rollout import place_groups
from videoauto_jax.train.run import SKIP_LOG, Progress, Run, check_batch, decided_samples, train_run
from videoauto_jax.train.step import Learner, TrainState
from videoauto_jax.train.stopping import StopRequest


class SFTTrainer:
    """One optimiser step per unit.

    Args:
        config: the recipe.
        learner: the compiled steps.
        stream: bundles.
        processor: pads prompts.
        text: facts of the decoder.
        mesh: where arrays go.
        folder: of the run.
    """

    def __init__(self, config: SFTConfig, learner: Learner, stream: PromptStream, processor: Processor,
                 text: TextConfig, mesh, folder: Path):  # fmt: skip
        self.config, self.learner, self.stream, self.folder = config, learner, stream, folder
        self.processor, self.text, self.mesh, self.total = processor, text, mesh, config.steps
        self.counters, self.stop = {"num_tokens": 0.0}, StopRequest()
        self.schedule = learning_rate_schedule(config.optimizer, config.steps)

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict]:
        clock, metrics, rate = Clock(), Metrics(), self.schedule(step_count(state.opt_state))
        with clock("input"):
            items = next(self.stream)
        with clock("pack"):
            batch, weights = self._packed([bundle for _, _, bundle in items])
        with clock("update"):
            state, update = self.learner.sft_step(state, self.learner.frozen, batch, weights)
            metrics.add(update)
        ids = [sample.id for _, sample, _ in items]
        check_finite(update, (batch, weights), ids, self.folder, self.config.max_nonfinite)
        prompts = [len(bundle.token_ids) for _, _, bundle in items]
        branches = [[len(branch) for branch in bundle.branches] for _, _, bundle in items]
        told = speed(self.counters, self.text, prompts, branches, clock, adapters=self.config.lora is not None)
        return state, metrics.pairs() | position(self.stream, rate) | told | clock.pairs()

    def _packed(self, bundles: list[Bundle]) -> tuple[GroupBatch, Float[Array, "B G R"]]:
        """Rows and weights on the mesh."""
        data = self.config.data
        batch, weights = pack_bundles(
            self.processor,
            bundles,
            bound=self.config.max_response_tokens,
            count=self.config.questions,
            prompt_lengths=data.prompt_lengths,
            patch_counts=data.patch_counts,
            branch_lengths=data.branch_lengths,
        )
        return place_groups(batch, self.mesh), place_rows(weights, self.mesh)

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
    shards = batch_shards(mesh)
    warn_about_shards(config.rows, shards, f"rows={-(-config.rows // shards) * shards}")
    warn_about_context(mesh, config.data)
    processor = config.data.processor(config.model)
    usable, left_out = usable_samples(config.data, processor, decided_samples(config, force))
    samples, mute = with_targets(usable, config.target)
    warn_about(mute)
    bundles = make_bundles(samples, config.questions)
    check_batch(len(bundles), "visuals with their questions", config.rows, "rows")
    with Run(config, force=force, lines=lines) as run:
        if run.finished():
            return True
        encoder = BundleEncoder(processor, config.max_response_tokens)
        drawn = config.data.stream(config.rows, config.seed)
        stream = PromptStream(bundles, encoder, drawn, skip_log=run.folder / SKIP_LOG, left_out=[*left_out, *mute])
        model = load_model(config.model, mesh, config.dtype, param_dtype=config.param_dtype)
        learner = Learner.create(model, config, total_steps=config.steps)
        trainer = SFTTrainer(config, learner, stream, processor, model.config.text, mesh, run.folder)
        return train_run(run, trainer, progress)
