"""`videoauto train`: reinforcement learning from a recipe."""

from rich import print as show
from rich.markup import escape

from videoauto_jax.cli.progress import progress_bar
from videoauto_jax.distributed import is_main
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.recipe import GRPOConfig

CONFIG = GRPOConfig
HELP = "GRPO on groups of answers; the same command resumes."


def run(config: GRPOConfig, *, force: bool) -> None:
    """Trains; the model is in `output/model` afterwards, what happened in `output/report.html`."""
    with progress_bar("train") as progress:
        ended = train_grpo(config, force=force, progress=progress)
    if not is_main():
        return
    from videoauto_jax.eval.training_report import write_training_report  # here because it loads matplotlib, slowly

    page = write_training_report(config.output)
    if ended:
        show(f"the trained model is in [bold]{escape(config.output)}/model[/], what happened in {escape(str(page))}")
    else:
        show("told to stop, everything is saved; the same command goes on")
