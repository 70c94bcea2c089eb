"""The folder of a finished evaluation, read without its model and without its data."""

import functools
from pathlib import Path

from videoauto_jax.config import load_config
from videoauto_jax.errors import UsageError
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.runner import read_records, read_skipped, read_timings


class Results:
    """What an evaluation wrote.

    Attributes:
        folder: its folder.
        config: its recipe.
        records: its records.
    """

    def __init__(self, folder: str | Path):
        """
        Raises:
            UsageError: the folder holds no evaluation, or one without an answer.
        """
        self.folder = Path(folder)
        recipe = self.folder / "config.yaml"
        if not recipe.exists():
            fix = "Name the output folder of videoauto eval"
            raise UsageError("there is no evaluation in this folder", where=self.folder, fix=fix)
        self.config = load_config(EvalConfig, recipe)
        self.records = read_records(self.folder)
        if not self.records:
            fix = "Finish it with the command it began with"
            raise UsageError("this evaluation has no answers yet", where=self.folder, fix=fix)

    def require(self, *modes: str) -> None:
        """Raises UsageError if the answers do not tell what one of the modes would score.

        What the gate cut short has no second answer, so at no other threshold is known what counts.
        """
        known = self.config.scored_modes
        unknown = [mode for mode in modes if mode not in known]
        if unknown:
            fix = f"It determines {' and '.join(known)}; evaluate with sampling.mode=record for all"
            raise UsageError(f"this evaluation tells nothing of mode {unknown[0]}", where=self.folder, fix=fix)

    @functools.cached_property
    def timings(self) -> list[dict]:
        """Lines of timings.jsonl."""
        return read_timings(self.folder)

    @functools.cached_property
    def skipped(self) -> list[dict]:
        """Samples without a prompt."""
        return read_skipped(self.folder)
