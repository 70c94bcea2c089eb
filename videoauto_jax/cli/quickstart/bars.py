"""What the quickstart is expected to show, and whether it did."""

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
POINTS, PERCENT, TIMES, SECONDS = "points", "%", "x", "s"


def bars(scores: Scores, seconds: float) -> dict[str, dict]:
    """Every expectation: name -> `{"value", "target", "met", "unit"}`.

    Args:
        scores: `{"warmup" | "trained": score_modes(...)}`.
        seconds: of the whole command.
    """
    before, after = scores["warmup"], scores["trained"]
    accuracy = lambda stage, mode, kind="all": 100 * stage[mode][kind]["accuracy"]  # noqa: E731
    gain = lambda kind: accuracy(after, "second", kind) - accuracy(after, "first", kind)  # noqa: E731
    auto, second = after["auto"], after["second"]
    better = max(accuracy(after, mode) for mode in ("first", "second"))
    thinks = {kind: auto[kind]["think_ratio"] for kind in ("reasoning", "perception")}
    return {
        "GRPO lifts final-answer accuracy": _at_least(
            accuracy(after, "second") - accuracy(before, "second"), 15, POINTS
        ),
        "reasoning: second answer above first": _at_least(gain("reasoning"), 10, POINTS),
        "perception: both answers agree": _at_most(abs(gain("perception")), 3, POINTS),
        "auto: behind the better mode by": _at_most(better - accuracy(after, "auto"), 1, POINTS),
        "auto: tokens of always thinking": _at_most(100 * auto["all"]["tokens"] / second["all"]["tokens"], 60, PERCENT),
        "auto: thinks more on reasoning": _at_least(thinks["reasoning"] / max(thinks["perception"], 1e-3), 2, TIMES),
        "the whole command": _at_most(seconds, 720, SECONDS),
    }


def _at_least(value: float, target: float, unit: str) -> dict:
    return {"value": value, "target": target, "met": bool(value >= target), "unit": unit}


def _at_most(value: float, target: float, unit: str) -> dict:
    return {"value": value, "target": target, "met": bool(value <= target), "unit": unit}
