"""What a report says of benchmarks: scores beside published ones, categories, curves."""

from collections.abc import Mapping
from html import escape

from videoauto_jax.eval.benchmarks.base import MODELS
from videoauto_jax.eval.export import benchmark_rows, shown
from videoauto_jax.eval.figures import benchmark_panel
from videoauto_jax.eval.page import bar, figure, fold, section, table

_SCORES = (
    "The headline metric of each benchmark in percent, in the mode of this evaluation, beside what the paper reports "
    "for the model it is compared with (paper, tables 3 and 4; its authors give ±0.5 as tolerance)."
)
_SPEED = (
    "Seconds between answers, loading and compiling included. What the gate saved is the tokens it left unwritten, at "
    "the cost per written token that fits this run (least squares over windows of answers); – where that is unknown."
)
_HEAD = ["", "score", "published", "difference", "first", "second", "thinks", "n", "skipped"]
_COST = ["", "tokens, mean", "p50", "p95", "seconds", "videos / min", "tokens saved", "seconds saved"]


def benchmark_sections(summary: Mapping) -> list[str]:
    """The sections of a summary's benchmarks; none where there are none."""
    benchmarks = summary["benchmarks"]
    if not benchmarks and not summary["unscored"]:
        return []
    curves = [benchmark_panel(found, summary["threshold"]) for found in benchmarks.values() if "curve" in found]
    mode = summary["headline_mode"]
    categories = [_categories(found, mode, opened=not n) for n, found in enumerate(benchmarks.values())]
    return [
        section("Benchmarks", _SCORES, _scores(summary)),
        section("Tokens and time", _SPEED, _costs(summary)),
        section("Published results", "In percent; mean IoU where a segment is asked for.", _published(benchmarks)),
        section("Score and tokens against the threshold", _TOKENS, figure("Threshold curves", curves, columns=3)),
        section("Categories", f"Mode {mode}; open a benchmark.", *categories),
    ]


_TOKENS = "Tokens are a share of those that always thinking takes. The dashed line is this evaluation's threshold."


def _scores(summary: Mapping) -> str:
    names = ("score", "published", "difference", "first", "second", "think_ratio", "n", "skipped")
    rows = benchmark_rows(summary)
    return table(_HEAD, [[escape(row["benchmark"]), *(shown(row[name]) for name in names)] for row in rows])


def _costs(summary: Mapping) -> str:
    rows = []
    for row, found in zip(benchmark_rows(summary), summary["benchmarks"].values()):
        saved = found.get("saved", {}).get("tokens")
        numbers = [row[name] for name in ("tokens", "tokens_p50", "tokens_p95", "seconds", "videos_per_minute")]
        rows.append([escape(row["benchmark"]), *map(shown, numbers), shown(saved), shown(row["saved_seconds"])])
    return table(_COST, rows)


def _published(benchmarks: Mapping[str, Mapping]) -> str:
    rows = [
        [escape(found["title"]), *(shown(found["published"].get(model)) for model in MODELS)]
        for found in benchmarks.values()
        if found["published"]
    ]
    return table(["", *MODELS], rows) if rows else ""


def _categories(found: Mapping, mode: str, *, opened: bool) -> str:
    kinds = found["modes"][mode]["breakdown"]
    tables = [
        table([kind, "", "score", "n"], [[escape(c), bar(one["score"] or 0), shown(one["score"]), str(one["n"])]
                                         for c, one in categories.items()], text=2)
        for kind, categories in kinds.items()
    ]  # fmt: skip
    return fold(found["title"], *tables, opened=opened) if tables else ""
