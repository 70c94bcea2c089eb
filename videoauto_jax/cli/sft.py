"""`videoauto sft`: supervised fine-tuning from a recipe."""

from videoauto_jax.cli.training import run_training
from videoauto_jax.train.recipe import SFTConfig
from videoauto_jax.train.sft import train_sft

CONFIG = SFTConfig
HELP = "Supervised fine-tuning on demonstrations; the same command resumes."


def run(config: SFTConfig, *, force: bool) -> None:
    """Trains; the model is in `output/model` afterwards, what happened in `output/report.html`."""
    run_training("sft", train_sft, config, force)
