"""`videoauto eval`: benchmarks and held-out samples, scored in every mode; and what can be done with the results."""

import rich
from rich.markup import escape
from rich.table import Table

from videoauto_jax.cli.progress import progress_bar
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.export import COLUMNS, benchmark_rows, shown, write_tables
from videoauto_jax.eval.report import evaluation_report, write_report
from videoauto_jax.eval.runner import evaluate, read_records

CONFIG = EvalConfig
HELP = "Scores a model on benchmarks or held-out samples; the same command resumes. See also: eval compare, calibrate."
VERBS = {
    "compare": "videoauto_jax.cli.eval_compare",
    "calibrate": "videoauto_jax.cli.eval_calibrate",
    "rescore": "videoauto_jax.cli.eval_rescore",
}
_SHOWN = ("benchmark", "score", "published", "first", "second", "tokens", "think_ratio", "n", "skipped",
          "videos_per_minute", "saved_seconds")  # fmt: skip


def run(config: EvalConfig, *, force: bool) -> None:
    """Evaluates, prints the scores, writes `output/report.html` and the tables."""
    with progress_bar("eval") as progress:
        summary = evaluate(config, force=force, progress=progress)
    show(summary, config.output)


def show(summary: dict, folder: str) -> None:
    """Writes report and tables of a finished evaluation into its folder, and prints the scores."""
    report = write_report(folder, evaluation_report(summary, read_records(folder)))
    write_tables(folder, summary)
    console = rich.get_console()
    named = summary["benchmarks"] or summary["unscored"]
    console.print(benchmarks_table(summary) if named else scores_table(summary["eval"]))
    if summary["skipped"]:
        first = summary["skipped"][0]
        line = f"{len(summary['skipped'])} samples skipped, the first is {first['id']}: {first['reason']}"
        console.print(escape(line), style="yellow", soft_wrap=True)
    console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)


def benchmarks_table(summary: dict) -> Table:
    """Benchmarks as the terminal shows them: scores beside published ones, tokens, think ratio, speed."""
    rows = benchmark_rows(summary)
    names = [name for name in _SHOWN if any(row[name] is not None for row in rows)]
    names = [name for name in names if name != "skipped" or any(row[name] for row in rows)]
    table = Table(*(COLUMNS[name] for name in names), box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(escape(shown(row[name])) for name in names))
    return table


def scores_table(modes: dict) -> Table:
    """Scores of every mode and slice as the terminal shows them."""
    table = Table("mode", "questions", *("accuracy", "mIoU", "tokens", "thinks", "n"), box=None, pad_edge=False)
    for mode, slices in modes.items():
        for name, scores in slices.items():
            numbers = [scores[key] for key in ("accuracy", "miou", "tokens", "think_ratio")]
            forms = ("{:.1%}", "{:.3f}", "{:.1f}", "{:.0%}")
            if not scores["n"] and name != "all":
                continue
            cells = ["–" if number is None else form.format(number) for form, number in zip(forms, numbers)]
            table.add_row(mode, name, *cells, str(scores["n"]))
    return table
