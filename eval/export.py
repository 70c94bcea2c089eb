"""The table of an evaluation's benchmarks as rows, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from videoauto_jax.files import write_atomic

COLUMNS = {
    "benchmark": "Benchmark",
    "score": "Score",
    "published": "Published",
    "difference": "Diff.",
    "first": "First",
    "second": "Second",
    "tokens": "Tokens",
    "tokens_p50": "p50",
    "tokens_p95": "p95",
    "think_ratio": "Thinks, %",
    "n": "n",
    "skipped": "Skipped",
    "seconds": "Seconds",
    "videos_per_minute": "Videos/min",
    "saved_seconds": "Saved, s",
}
"""Key of a row -> what tables call it. Scores and ratios are in percent."""

Row = dict[str, str | float | int | None]


def benchmark_rows(summary: Mapping) -> list[Row]:
    """One row per benchmark of a summary, in the mode the evaluation is about, the published result beside it.

    Benchmarks of which every sample was skipped stand last, without numbers.
    """
    mode, model = summary["headline_mode"], summary["compared_with"]
    rows = [_row(found, mode, model) for found in summary["benchmarks"].values()]
    lost = summary["unscored"].items()
    return rows + [dict.fromkeys(COLUMNS) | {"benchmark": title, "n": 0, "skipped": n} for title, n in lost]


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with a head of `COLUMNS`' keys; numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_latex(rows: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS)[:11]) -> str:
    """A `tabular` (booktabs) of some columns, one decimal."""
    head = " & ".join(COLUMNS[name].replace("%", "\\%") for name in columns)
    body = "".join(f"{' & '.join(_latex(row[name]) for name in columns)} \\\\\n" for row in rows)
    form = "l" + "r" * (len(columns) - 1)
    return f"\\begin{{tabular}}{{{form}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def write_tables(folder: str | Path, summary: Mapping) -> list[Path]:
    """Writes table.csv and table.tex; nothing without benchmarks."""
    rows = benchmark_rows(summary)
    files = {"table.csv": to_csv(rows), "table.tex": to_latex(rows)} if rows else {}
    for name, text in files.items():
        write_atomic(Path(folder) / name, text)
    return [Path(folder) / name for name in files]


def shown(value: str | float | int | None) -> str:
    """A cell as people read it."""
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _latex(value: str | float | int | None) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", shown(value))


def _row(found: Mapping, mode: str, model: str | None) -> Row:
    modes = found["modes"]
    chosen, published = modes[mode], found["published"].get(model)
    score = chosen["score"]
    return {
        "benchmark": found["title"],
        "score": score,
        "published": published,
        "difference": None if None in (published, score) else score - published,
        **{name: modes[name]["score"] if name in modes else None for name in ("first", "second")},
        "tokens": chosen["tokens"]["mean"],
        "tokens_p50": chosen["tokens"]["p50"],
        "tokens_p95": chosen["tokens"]["p95"],
        "think_ratio": 100 * chosen["think_ratio"],
        "n": found["n"],
        "skipped": found["skipped"],
        "seconds": found["seconds"],
        "videos_per_minute": found["videos_per_minute"],
        "saved_seconds": found.get("saved", {}).get("seconds"),
    }
