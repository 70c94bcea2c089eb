"""Scores of an evaluation while it runs, one record at a time."""

from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.records import GROUNDED, Record
from videoauto_jax.eval.scoring import is_right, thinks


class Running:
    """Means over the records so far, of the mode the recipe is about.

    Attributes:
        n: records so far.
    """

    def __init__(self, config: EvalConfig):
        self.n = 0
        self._config = config
        self._sums = {"accuracy": 0.0, "miou": 0.0, "tokens": 0.0, "think_ratio": 0.0}
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, record: Record) -> None:
        """Counts a record."""
        which = "second" if thinks(record, self._config.sampling.threshold, self._config.headline_mode) else "first"
        self.n += 1
        self._put("accuracy", is_right(record, which))
        self._put("tokens", record["first_tokens" if which == "first" else "tokens"])
        self._put("think_ratio", which == "second")
        if record["problem_type"] in GROUNDED:
            self._put("miou", record[f"iou_{which}"])

    def numbers(self) -> dict[str, float]:
        """The means of what there is."""
        return {name: self._sums[name] / count for name, count in self._counts.items() if count}

    def _put(self, name: str, value: float) -> None:
        self._sums[name] += float(value)
        self._counts[name] += 1
