"""One look for all figures, as SVG that follows the page's light or dark scheme, or as PNG on white."""

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours of the light scheme; the page gives the same names other values in the dark.
LIGHT = {
    "ink": "#1c1e21",
    "muted": "#6a7078",
    "grid": "#e3e5e8",
    "one": "#2a78d6",
    "two": "#eb6834",
    "three": "#1b9e77",
    "four": "#7a4fc4",
}
DARK = LIGHT | {
    "ink": "#e9eaec",
    "muted": "#9aa1aa",
    "grid": "#33373d",
    "one": "#5a9cf0",
    "two": "#f08a5d",
    "three": "#3fbf95",
    "four": "#a98bea",
}

_NAMED = re.compile("|".join(LIGHT.values()), re.IGNORECASE)
_NAMES = {value: name for name, value in LIGHT.items()}
_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_GROUP = re.compile(r' id="[A-Za-z][\w.]*_\d+"')


def style() -> AbstractContextManager:
    """The rc settings that figures are made and drawn under."""
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 8,
            "axes.edgecolor": LIGHT["grid"],
            "axes.labelcolor": LIGHT["muted"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": LIGHT["grid"],
            "grid.linewidth": 0.8,
            "text.color": LIGHT["ink"],
            "xtick.color": LIGHT["muted"],
            "ytick.color": LIGHT["muted"],
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "svg.fonttype": "none",
            "figure.constrained_layout.use": True,
        }
    )


def panels(draw: list[Callable[[Axes], None]], *, columns: int = 2, width: float = 4.8, height: float = 2.9) -> Figure:
    """A figure of panels in rows, each drawn by one function of its axes."""
    columns = min(columns, len(draw))
    rows = -(-len(draw) // columns)
    figure = Figure(figsize=(columns * width, rows * height))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one, ax in zip(draw, axes):
        one(ax)
    for ax in axes[len(draw) :]:
        ax.remove()
    return figure


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element without a size of its own, its colours as CSS variables (`var(--ink)`)."""
    buffer = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = _HEAD.sub("", buffer.getvalue())
    text = _NAMED.sub(lambda match: f"var(--{_NAMES[match[0].lower()]})", text)
    text = _GROUP.sub("", text)
    text = re.sub(r"<svg ([^>]*?)>", lambda match: f"<svg {_without_size(match[1])}>", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG on white."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def _without_size(attributes: str) -> str:
    return re.sub(r'\s*\b(width|height)="[^"]*"', "", attributes)
