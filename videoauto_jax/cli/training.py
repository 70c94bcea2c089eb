"""What the verbs that train have in common."""

from collections.abc import Callable

from rich import print as show
from rich.markup import escape

from videoauto_jax.cli.progress import progress_bar
from videoauto_jax.distributed import is_main
from videoauto_jax.train.recipe import RunConfig


def run_training(verb: str, train: Callable[..., bool], config: RunConfig, force: bool) -> None:
    """Runs a recipe under a progress bar, writes the run's report, and says where everything is.

    Args:
        verb: stands before the bar.
        train: `train(config, force=…, progress=…)`; whether the run has ended.
        config: the recipe.
        force: begin anew.
    """
    with progress_bar(verb) as progress:
        ended = train(config, force=force, progress=progress)
    if not is_main():
        return
    from videoauto_jax.eval.training_report import write_training_report  # here because it loads matplotlib, slowly

    page = write_training_report(config.output)
    if ended:
        show(f"the trained model is in [bold]{escape(config.output)}/model[/], what happened in {escape(str(page))}")
    else:
        show("told to stop, everything is saved; the same command goes on")
