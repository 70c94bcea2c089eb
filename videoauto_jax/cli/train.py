"""`videoauto train`: reinforcement learning from a recipe."""

from videoauto_jax.cli.training import run_training
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.recipe import GRPOConfig

CONFIG = GRPOConfig
HELP = "GRPO on groups of answers; the same command resumes."


def run(config: GRPOConfig, *, force: bool) -> None:
    """Trains; the model is in `output/model` afterwards, what happened in `output/report.html`."""
    run_training("train", train_grpo, config, force)
