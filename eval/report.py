"""Reports: one self-contained `report.html` for an evaluation, or for a whole quick start."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from videoauto_jax.eval.benchmark_sections import benchmark_sections
from videoauto_jax.eval.browser import browser
from videoauto_jax.eval.figures import (
    GRPO_CURVES,
    SFT_CURVES,
    confidence_histogram,
    curves,
    mode_bars,
    reliability_panel,
    threshold_panels,
)
from videoauto_jax.eval.page import figure, page, section, table, tiles, verdict
from videoauto_jax.eval.records import Record
from videoauto_jax.eval.samples import cards, pick_samples
from videoauto_jax.eval.scoring import reliability
from videoauto_jax.eval.theme import panels, style, to_png
from videoauto_jax.files import write_atomic

STAGES = {"warmup": "warm-up", "trained": "trained"}
"""The keys of an `eval` section and what the page calls them."""


@dataclasses.dataclass(frozen=True)
class QuickstartReport:
    """What the page of a quick start shows.

    Attributes:
        seed: of everything.
        threshold: of mode `auto`.
        seconds: stage -> seconds.
        scores: `{"warmup" | "trained": score_modes(...)}`.
        bars: name -> `{"value", "target", "met"}`, and optionally "unit" (`points`, `%`, `x`, `s`).
        sft_metrics, grpo_metrics: lines of the runs' metrics.jsonl.
        records: the trained model's records.
        samples: how many answers are shown.
    """

    seed: int
    threshold: float
    seconds: Mapping[str, float]
    scores: Mapping[str, Mapping]
    bars: Mapping[str, Mapping]
    sft_metrics: Sequence[Mapping]
    grpo_metrics: Sequence[Mapping]
    records: Sequence[Record]
    samples: int = 8


def quickstart_report(data: QuickstartReport) -> str:
    """The page of a quick start as HTML."""
    trained, total = data.scores["trained"], sum(data.seconds.values())
    accuracy = {stage: scores["second"]["all"]["accuracy"] for stage, scores in data.scores.items()}
    head = {
        "final-answer accuracy, trained": _percent(accuracy["trained"]),
        "the same after the warm-up": _percent(accuracy["warmup"]),
        "accuracy of mode auto": _percent(trained["auto"]["all"]["accuracy"]),
        "tokens of auto, mean": _number(trained["auto"]["all"]["tokens"], "{:.1f}"),
        "think ratio of auto": _percent(trained["auto"]["all"]["think_ratio"]),
        "the whole run": _duration(total),
    }
    lead = (
        f"Seed {data.seed}. A small Qwen3-VL was warmed up, trained with GRPO and evaluated on {len(data.records)} "
        f"held-out items; mode auto thinks where the first answer's confidence is below {data.threshold:.4g}."
    )
    sections = [
        tiles(head),
        section("Targets", "What this run was to reach on held-out items, and what it reached.", bars_table(data.bars)),
        section("Scores", _SCORES, scores_table(data.scores), _mode_figure(data.scores)),
        section("Training", _CURVES, figure("GRPO curves", curves(data.grpo_metrics, GRPO_CURVES, "round"), columns=3)),
        section("Warm-up", "", figure("Loss of the warm-up", curves(data.sft_metrics, SFT_CURVES, "step"), columns=1)),
        gate_section(data.records, data.threshold),
        samples_section(data.records, data.threshold, data.samples),
        section("Time", "Seconds of every stage.", seconds_table(data.seconds)),
    ]
    return page("VideoAuto-R1 quick start", lead, sections)


def evaluation_report(summary: Mapping, records: Sequence[Record], *, samples: int = 24) -> str:
    """The page of one evaluation as HTML, from what `evaluate` returns and its records.

    Args:
        samples: most answers of each benchmark or data set that the browser holds; each has frames of its video in it.
    """
    threshold, modes = summary["threshold"], summary["eval"]
    gated = {"second", "auto"} <= set(modes)
    lead = (
        f"{summary['model']}: {summary['n']} samples in mode {summary['mode']}, scored by the {summary['profile']} "
        f"profile. Mode auto thinks where the first answer's confidence is below {threshold:.4g}."
    )
    rows = [[escape(skip["id"]), escape(skip["reason"])] for skip in summary["skipped"]]
    skipped = table(["sample", "why"], rows, text=2) if rows else ""
    sections = [
        *benchmark_sections(summary),
        section("All samples", _SCORES, scores_table({"": modes}), _mode_figure({"": modes} if gated else {})),
        gate_section(records, threshold) if gated else "",
        section("Answers", _BROWSER, browser(_picked(records, threshold, samples), threshold)),
        section("Skipped", "Samples without a prompt; they count in no score.", skipped),
    ]
    return page("Evaluation", lead, sections)


def write_report(folder: str | Path, html: str) -> Path:
    """Writes `folder/report.html` atomically and returns its path."""
    path = Path(folder) / "report.html"
    write_atomic(path, html)
    return path


def picture(data: QuickstartReport) -> bytes:
    """The four figures that tell the story, as one PNG."""
    with style():
        drawn = panels(
            [
                *curves(data.grpo_metrics, GRPO_CURVES[:1], "round"),
                mode_bars(data.scores["trained"], "Held-out accuracy after GRPO"),
                confidence_histogram(data.records, data.threshold),
                threshold_panels(data.records, data.threshold)[1],
            ]
        )
    return to_png(drawn)


def gate_section(records: Sequence[Record], threshold: float) -> str:
    """Confidence, reliability and what the threshold changes."""
    if not records:
        return ""
    drawn = [confidence_histogram(records, threshold), reliability_panel(reliability(records))]
    drawn += threshold_panels(records, threshold)
    return section("The gate", f"The dashed line is the threshold, {threshold:.4g}.", figure("The gate", drawn))


def samples_section(records: Sequence[Record], threshold: float, count: int) -> str:
    """Answers beside frames of their videos."""
    text = "Picked to show every combination of verdicts, not the best ones."
    return section("Answers", text, cards(pick_samples(records, threshold, count), threshold))


def scores_table(stages: Mapping[str, Mapping]) -> str:
    """Every stage, mode and slice with accuracy, mIoU, tokens and think ratio."""
    rows, rules = [], []
    for stage, modes in stages.items():
        for mode, slices in modes.items():
            rules.append(len(rows))
            for name, scores in slices.items():
                if scores["n"] or name == "all":
                    rows.append([escape(STAGES.get(stage, stage)), mode, name, *_cells(scores)])
    named = any(stages)
    head = ["model", "mode", "questions", "accuracy", "mIoU", "tokens", "think ratio", "n"]
    return table(head[not named :], [row[not named :] for row in rows], text=3 if named else 2, rules=rules[1:])


def bars_table(bars: Mapping[str, Mapping]) -> str:
    """Targets and whether they are met."""
    if not bars:
        return ""
    rows = [
        [
            escape(name.replace("_", " ")),
            escape(_with_unit(bar["value"], bar.get("unit"))),
            escape(_with_unit(bar["target"], bar.get("unit"))),
            verdict(bool(bar["met"]), yes="met", no="missed"),
        ]
        for name, bar in bars.items()
    ]
    return table(["target", "value", "aim", ""], rows)


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Stages as bars."""
    if not seconds:
        return ""
    total = sum(seconds.values())
    longest = max(seconds.values()) or 1.0
    bar = lambda value: f'<span class="bar" style="width:{240 * value / longest:.0f}px"></span>'  # noqa: E731
    rows = [[escape(stage), bar(value), f"{value:.1f} s"] for stage, value in seconds.items()]
    return table(["stage", "", "time"], [*rows, ["all", "", f"{total:.1f} s"]], text=2, rules=[len(rows)])


_SCORES = (
    "first answers at once, second always thinks, auto thinks where the gate says so; all from one pass. An interval "
    "is right from IoU 0.5 on, a grounded answer if its letter is; grounding counts as perception too."
)
_BROWSER = "Of each benchmark or data set some, picked to show every combination of verdicts. The buttons filter them."
_CURVES = "Faint lines are single rounds, strong ones their running mean."


def _picked(records: Sequence[Record], threshold: float, count: int) -> list[Record]:
    """So many records of every source, source after source."""
    sources = dict.fromkeys(record["source"] for record in records)
    parts = [[record for record in records if record["source"] == source] for source in sources]
    return [record for part in parts for record in pick_samples(part, threshold, count)]


def _mode_figure(stages: Mapping[str, Mapping]) -> str:
    drawn = [mode_bars(modes, f"Accuracy, {STAGES[s]}" if s in STAGES else "Accuracy") for s, modes in stages.items()]
    return figure("Accuracy by mode", drawn)


def _cells(scores: Mapping) -> list[str]:
    return [
        _percent(scores["accuracy"]),
        _number(scores["miou"], "{:.3f}"),
        _number(scores["tokens"], "{:.1f}"),
        _percent(scores["think_ratio"]),
        str(scores["n"]),
    ]


def _percent(value: float | None) -> str:
    return _number(value, "{:.1%}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _with_unit(value: object, unit: str | None) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" + (f" {unit}" if unit else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
