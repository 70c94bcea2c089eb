"""`videoauto eval calibrate RUN`: which threshold the gate should have."""

import dataclasses

import rich
from rich.markup import escape
from rich.table import Table

from videoauto_jax.eval.calibration import calibrate
from videoauto_jax.eval.calibration_report import calibration_report
from videoauto_jax.eval.report import write_report
from videoauto_jax.eval.results import Results
from videoauto_jax.files import write_json


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """A calibration.

    Attributes:
        run: folder of an evaluation in mode `record`.
        share: part of the videos to pick on; the rest is reported on.
        seed: of that split.
        tolerance: percentage points that the score may lie behind the better of the modes first and second.
        budget: most tokens of an answer, mean; given, the best score within it is picked instead.
    """

    run: str
    share: float = 0.5
    seed: int = 0
    tolerance: float = 0.5
    budget: float | None = None


CONFIG = CalibrateConfig
POSITIONAL = ("run",)
HELP = "Picks the gate's threshold on a part of an evaluation's videos and reports it on the rest."


def run(config: CalibrateConfig, *, force: bool) -> None:
    """Prints a line per benchmark, writes `calibration.json` and `calibration/report.html`.

    Raises:
        UsageError: no such evaluation, or one that does not determine both answers.
        DataError: too few videos to split.
    """
    results = Results(config.run)
    results.require("first", "second")
    options = {name: getattr(config, name) for name in ("share", "seed", "tolerance", "budget")}
    found = calibrate(results.records, results.config.profile, timings=results.timings, **options)
    write_json(results.folder / "calibration.json", found)
    report = write_report(results.folder / "calibration", calibration_report(found, str(results.folder)))
    columns = ("", "threshold", "score", "tokens", "thinks", "first", "second", "tokens of second", "n")
    table = Table(*columns, box=None, pad_edge=False)
    for name, one in found.items():
        at, first, second = one["reported"], one["first"], one["second"]
        scores = [f"{point['score'] or 0:.1f}" for point in (at, first, second)]
        spent = [f"{at['tokens']:.1f}", f"{at['think_ratio']:.0%}"]
        cells = [f"{one['threshold']:.4f}", scores[0], *spent, *scores[1:], f"{second['tokens']:.1f}", str(at["n"])]
        table.add_row(name, *cells)
    console = rich.get_console()
    console.print(table)
    console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)
