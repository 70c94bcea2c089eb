"""`videoauto eval`: accuracy, mIoU, tokens and think ratio on held-out samples."""

import rich
from rich.markup import escape
from rich.table import Table

from videoauto_jax.cli.progress import progress_bar
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.report import evaluation_report, write_report
from videoauto_jax.eval.runner import evaluate, read_records

CONFIG = EvalConfig
HELP = "Scores a model in the modes first, second and auto; the same command resumes."


def run(config: EvalConfig, *, force: bool) -> None:
    """Evaluates, prints the scores and writes `output/report.html`."""
    with progress_bar("eval") as progress:
        summary = evaluate(config, force=force, progress=progress)
    report = write_report(config.output, evaluation_report(summary, read_records(config.output)))
    console = rich.get_console()
    console.print(scores_table(summary["eval"]))
    if summary["skipped"]:
        first = summary["skipped"][0]
        line = f"{len(summary['skipped'])} samples skipped, the first is {first['id']}: {first['reason']}"
        console.print(escape(line), style="yellow", soft_wrap=True)
    console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)


def scores_table(modes: dict) -> Table:
    """Scores of every mode and slice as the terminal shows them."""
    table = Table("mode", "questions", *("accuracy", "mIoU", "tokens", "thinks", "n"), box=None, pad_edge=False)
    for mode, slices in modes.items():
        for name, scores in slices.items():
            numbers = [scores[key] for key in ("accuracy", "miou", "tokens", "think_ratio")]
            forms = ("{:.1%}", "{:.3f}", "{:.1f}", "{:.0%}")
            shown = ["–" if number is None else form.format(number) for form, number in zip(forms, numbers)]
            table.add_row(mode, name, *shown, str(scores["n"]))
    return table
