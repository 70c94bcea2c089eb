"""The page of a calibration of the gate."""

from collections.abc import Mapping
from html import escape

from videoauto_jax.eval.figures import reliability_panel, tradeoff_panel
from videoauto_jax.eval.page import figure, page, section, table

_TRADEOFF = "Every point is a threshold; the front holds those that nothing beats for as few tokens."


def calibration_report(found: Mapping[str, Mapping], run: str) -> str:
    """The page of a calibration as HTML, from what `calibrate` returns."""
    names = ("score", "tokens", "think_ratio")
    head = ["", "threshold", *(f"{name.replace('_', ' ')}, {part}" for part in ("picked on", "rest") for name in names)]
    rows = []
    for name, one in found.items():
        forms = {"think_ratio": "{:.1%}"}
        points = [(one[part], key) for part in ("picked", "reported") for key in names]
        cells = [_cell(point[key], forms.get(key, "{:.1f}")) for point, key in points]
        rows.append([escape(name), f"{one['threshold']:.4f}", *cells])
    lead = f"{run}: the threshold of mode auto, picked on a part of the videos and reported on the others."
    tradeoffs = [tradeoff_panel(name, one) for name, one in found.items()]
    reliabilities = [reliability_panel(one["reliability"], name) for name, one in found.items()]
    sections = [
        section("Thresholds", "", table(head, rows)),
        section("Score against tokens", _TRADEOFF, figure("Trade-off", tradeoffs)),
        section("Reliability of the confidence", "", figure("Reliability", reliabilities)),
    ]
    return page("Calibration of the gate", lead, sections)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
