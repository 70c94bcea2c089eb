"""The curves and histograms of reports: each function draws one panel from metrics or records."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from videoauto_jax.eval.records import Record
from videoauto_jax.eval.scoring import ALWAYS_THINK, MODES, SLICES, is_right, score_modes, threshold_curve
from videoauto_jax.eval.theme import LIGHT

Panel = Callable[[Axes], None]
COLOURS = tuple(LIGHT[name] for name in ("one", "two", "three", "four"))
GRPO_CURVES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Reward", {"reward": "reward"}),
    ("Accuracy reward", {"rewards/accuracy_twice_boxed_reward1": "first answer",
                         "rewards/accuracy_twice_boxed_reward2": "final answer"}),
    ("KL to the warm-up", {"kl": "KL"}),
    ("Response tokens", {"completions/mean_length": "mean length"}),
    ("Thinking", {"think_ratio": "think ratio", "fallback_ratio": "declines to guess"}),
    ("Confidence of the first answer", {"confidence": "mean"}),
)  # fmt: skip
SFT_CURVES = (("Loss of the warm-up", {"loss": "loss"}),)


def curves(metrics: Sequence[Mapping], wanted: Sequence[tuple[str, Mapping[str, str]]], unit: str) -> list[Panel]:
    """A panel per title of metrics over steps; metrics that the run does not have are left out.

    Args:
        metrics: lines of metrics.jsonl.
        wanted: (title, {metric: name in the legend}).
        unit: what a step is called.
    """
    have = {name for line in metrics for name, value in line.items() if value is not None}
    made = []
    for title, names in wanted:
        found = {name: label for name, label in names.items() if name in have}
        if found:
            made.append(_curve(title, found, metrics, unit, legend=len(names) > 1))
    return made


def confidence_histogram(records: Sequence[Record], threshold: float) -> Panel:
    """How confident right and wrong first answers are, and where the gate stands."""
    judged = [record for record in records if record["confidence"] >= 0]
    right = [record["confidence"] for record in judged if is_right(record, "first") >= 0.5]
    wrong = [record["confidence"] for record in judged if is_right(record, "first") < 0.5]

    def draw(ax: Axes) -> None:
        labels = [f"right ({len(right)})", f"wrong ({len(wrong)})"]
        ax.hist([right, wrong], bins=np.linspace(0, 1, 21), stacked=True, color=COLOURS[:2], label=labels, rwidth=0.92)
        _gate(ax, threshold)
        ax.set(title="Confidence of the first answer", xlabel="confidence", ylabel="samples", xlim=(0, 1.01))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper left")

    return draw


def threshold_panels(records: Sequence[Record], threshold: float) -> list[Panel]:
    """Accuracy, and think ratio, of mode `auto` against its threshold."""
    confidences = [record["confidence"] for record in records if record["confidence"] >= 0]
    grid = np.unique([ALWAYS_THINK, *np.linspace(0, 1, 41), *np.quantile(confidences or [0.0], np.linspace(0, 1, 60))])
    points = threshold_curve(records, grid.tolist())
    fixed = score_modes(records, threshold, modes=("first", "second"), slices={"all": None})

    def accuracy(ax: Axes) -> None:
        ax.plot(grid, [point["accuracy"] for point in points], color=COLOURS[0], label="auto")
        for (mode, scores), dash in zip(fixed.items(), (":", "--")):
            ax.axhline(scores["all"]["accuracy"], color=LIGHT["muted"], linestyle=dash, linewidth=1.1, label=mode)
        _gate(ax, threshold)
        ax.set(title="Accuracy against the threshold", xlabel="threshold", xlim=(0, 1.01))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.legend(loc="best")

    def ratio(ax: Axes) -> None:
        for name, colour in (("reasoning", COLOURS[1]), ("perception", COLOURS[0])):
            part = [record for record in records if not SLICES[name].isdisjoint(record["tags"])]
            if part:
                shares = [point["think_ratio"] for point in threshold_curve(part, grid.tolist())]
                ax.plot(grid, shares, color=colour, label=name)
        shares = [point["think_ratio"] for point in points]
        ax.plot(grid, shares, color=LIGHT["muted"], linestyle="--", linewidth=1.3, label="all")
        _gate(ax, threshold)
        ax.set(title="Think ratio against the threshold", xlabel="threshold", xlim=(0, 1.01), ylim=(-0.02, 1.04))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.legend(loc="upper left")

    return [accuracy, ratio]


def reliability_panel(reliability: Sequence[Mapping], title: str = "Reliability") -> Panel:
    """How often first answers of a confidence are right, from `scoring.reliability`."""
    bins = [one for one in reliability if one["n"]]
    most = max((one["n"] for one in bins), default=1)

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=LIGHT["muted"], linestyle="--", linewidth=1.1, label="as confident as right")
        sizes = [20 + 180 * one["n"] / most for one in bins]
        x, y = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        ax.scatter(x, y, s=sizes, color=COLOURS[0], label="first answers, by number", zorder=3)
        ax.set(title=title, xlabel="confidence", ylabel="right", xlim=(0, 1.04), ylim=(-0.04, 1.06))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.legend(loc="upper left")

    return draw


def benchmark_panel(found: Mapping, threshold: float) -> Panel:
    """Score, and tokens as a share of always thinking, of a benchmark of a summary against the threshold."""
    points = found["curve"]
    most = max(point["tokens"] for point in points) or 1.0
    grid = [point["threshold"] for point in points]

    def draw(ax: Axes) -> None:
        scores = [np.nan if point["score"] is None else point["score"] for point in points]
        ax.plot(grid, scores, color=COLOURS[0], label="score")
        ax.plot(grid, [100 * point["tokens"] / most for point in points], color=COLOURS[1], label="tokens")
        _gate(ax, threshold)
        ax.set(title=found["title"], xlabel="threshold", ylabel="%", xlim=(0, 1.01), ylim=(-2, 104))
        ax.legend(loc="best")

    return draw


def tradeoff_panel(name: str, found: Mapping) -> Panel:
    """Score against tokens of a calibration: every threshold, the Pareto front, what was picked."""

    def draw(ax: Axes) -> None:
        for points, form, label in ((found["curve"], ".", "thresholds"), (found["pareto"], "-", "Pareto front")):
            x, y = ([point[key] or 0.0 for point in points] for key in ("tokens", "score"))
            ax.plot(x, y, form, color=COLOURS[0], label=label, alpha=0.5 if form == "." else 1)
        for key, colour in (("picked", COLOURS[1]), ("reported", COLOURS[2])):
            ax.plot(found[key]["tokens"], found[key]["score"] or 0.0, "o", color=colour, label=key)
        ax.set(title=name, xlabel="tokens of an answer, mean", ylabel="score, %")
        ax.legend(loc="best")

    return draw


def mode_bars(scores: Mapping[str, Mapping], title: str) -> Panel:
    """Accuracy of every mode on every slice, from `score_modes`."""
    names = [name for name in SLICES if scores["first"][name]["n"]]

    def draw(ax: Axes) -> None:
        width = 0.26
        for i, (mode, colour) in enumerate(zip(MODES, COLOURS)):
            values = [scores[mode][name]["accuracy"] for name in names]
            bars = ax.bar(np.arange(len(names)) + (i - 1) * width, values, width * 0.92, color=colour, label=mode)
            percents = [f"{100 * value:.0f}" for value in values]
            ax.bar_label(bars, percents, fontsize=7.5, padding=1, color=LIGHT["muted"])
        ax.set(title=title, xticks=range(len(names)), xticklabels=names, ylim=(0, 1.22))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_yticks(np.linspace(0, 1, 5))
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper left", ncols=3)

    return draw


def _curve(title: str, names: Mapping[str, str], metrics: Sequence[Mapping], unit: str, legend: bool) -> Panel:
    def draw(ax: Axes) -> None:
        for (name, label), colour in zip(names.items(), COLOURS):
            points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
            steps, values = np.array(points, float).T
            ax.plot(steps, values, color=colour, linewidth=0.9, alpha=0.3)
            ax.plot(steps, _smooth(values), color=colour, label=label)
        ax.set(title=title, xlabel=unit)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if legend:
            ax.legend(loc="best")

    return draw


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a tenth of the run, narrower at its ends."""
    half = len(values) // 20
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _gate(ax: Axes, threshold: float) -> None:
    if 0 <= threshold <= 1:
        ax.axvline(threshold, color=LIGHT["ink"], linewidth=1.1, linestyle=(0, (2, 2)))
