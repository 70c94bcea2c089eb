"""Accuracy, mIoU, tokens and think ratio of every mode from one pass: functions of records (see `eval.records`)."""

from collections.abc import Mapping, Sequence

import numpy as np

from videoauto_jax.eval.records import GROUNDED, Record

MODES = ("first", "second", "auto")
SLICES: dict[str, frozenset[str] | None] = {
    "all": None,
    "perception": frozenset({"perception", "grounding"}),
    "reasoning": frozenset({"reasoning"}),
    "grounding": frozenset({"grounding"}),
}
"""Name -> tags, one of which a record needs to belong; None takes every record."""

RIGHT_IOU = 0.5
"""A located segment counts as right from this IoU on."""

ALWAYS_THINK = 1.01
"""A threshold that no confidence reaches."""

Scores = dict[str, float | int | None]


def score_modes(
    records: Sequence[Record],
    threshold: float,
    *,
    modes: Sequence[str] = MODES,
    slices: Mapping[str, frozenset[str] | None] = SLICES,
) -> dict[str, dict[str, Scores]]:
    """`{mode: {slice: {"accuracy", "miou", "tokens", "think_ratio", "n"}}}`.

    `first` counts the first answer and the tokens that write it; `second` the final answer and all tokens; `auto` the
    first where its confidence reaches `threshold`, else the second. Accuracy is in 0..1: an interval is right from IoU
    0.5 on, a grounded answer if its letter is. mIoU is the mean IoU of the items that ask for an interval, null where
    there are none; so are the means of an empty slice.

    Args:
        records: of a pass in mode `record` or `second`; of another mode those `modes` that the pass determines.
        threshold: of `auto`; a branch that the gate ended counts as first whatever its value.
    """
    table, gate = _columns(records), Gate(records)
    members = {name: _members(records, tags) for name, tags in slices.items()}
    scored = {mode: _choose(table, gate.thinking(mode, threshold)) for mode in modes}
    return {mode: {name: _means(chosen, rows) for name, rows in members.items()} for mode, chosen in scored.items()}


def threshold_curve(records: Sequence[Record], thresholds: Sequence[float]) -> list[dict[str, float | None]]:
    """`{"threshold", "accuracy", "miou", "tokens", "think_ratio", "n"}` of mode `auto` at every threshold."""
    table, gate, everything = _columns(records), Gate(records), np.ones(len(records), bool)
    at = lambda threshold: _means(_choose(table, gate.thinking("auto", threshold)), everything)  # noqa: E731
    return [{"threshold": float(threshold), **at(threshold)} for threshold in thresholds]


def reliability(records: Sequence[Record], bins: int = 10) -> list[dict[str, float | int | None]]:
    """How often first answers of a confidence are right: equal bins over 0..1, each `{"low", "high", "n", "right",
    "confidence", "accuracy"}` (the last two are means, null in an empty bin). Records without confidence are left out.
    """
    confidence = Gate(records).confidence
    has = confidence >= 0
    confidence, right = confidence[has], _columns(records)["right"][has, 0]
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [_bin(confidence[place == b], right[place == b], b / bins, (b + 1) / bins) for b in range(bins)]


def is_right(record: Record, which: str) -> float:
    """Accuracy of the `first` or `second` answer of a record, in 0..1."""
    score, iou = record[f"score_{which}"], record[f"iou_{which}"]
    if record["problem_type"] == "iou":
        return float(iou >= RIGHT_IOU)
    if record["problem_type"] == "gqa":
        return float(round(score - iou))
    return float(score)


def thinks(record: Record, threshold: float, mode: str = "auto") -> bool:
    """Whether the second answer of a record counts in a mode."""
    return bool(Gate([record]).thinking(mode, threshold)[0])


class Gate:
    """Which of some records think, for many thresholds.

    Attributes:
        confidence: of the first answers, in float32, as the compiled gate compares; -1 where there is none.
    """

    def __init__(self, records: Sequence[Record]):
        self.confidence = np.array([record["confidence"] for record in records], np.float32)
        self._exited = np.array([record["finish_reason"] == "exit" for record in records], bool)

    def thinking(self, mode: str, threshold: float) -> np.ndarray:
        """Whose second answer counts in a mode: booleans, one per record."""
        if mode == "auto":
            return ~self._exited & (self.confidence < np.float32(threshold))
        return np.full(len(self.confidence), mode == "second")


def _columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """The records as arrays; answers along the second axis: first, second."""
    pairs = lambda *fields: np.array([[r[f] for f in fields] for r in records], np.float64).reshape(-1, 2)  # noqa: E731
    right = [[is_right(record, which) for which in ("first", "second")] for record in records]
    return {
        "right": np.array(right, np.float64).reshape(-1, 2),
        "iou": pairs("iou_first", "iou_second"),  # null becomes NaN
        "tokens": pairs("first_tokens", "tokens"),
        "grounded": np.array([record["problem_type"] in GROUNDED for record in records], bool),
    }


def _choose(table: Mapping[str, np.ndarray], thinks: np.ndarray) -> dict[str, np.ndarray]:
    """Each record's answer that counts."""
    rows, answer = np.arange(len(thinks)), thinks.astype(int)
    chosen = {name: table[name][rows, answer] for name in ("right", "iou", "tokens")}
    return chosen | {"thinks": answer, "grounded": table["grounded"]}


def _means(chosen: Mapping[str, np.ndarray], rows: np.ndarray) -> Scores:
    mean = lambda values: float(values.mean()) if len(values) else None  # noqa: E731
    return {
        "accuracy": mean(chosen["right"][rows]),
        "miou": mean(chosen["iou"][rows & chosen["grounded"]]),
        "tokens": mean(chosen["tokens"][rows]),
        "think_ratio": mean(chosen["thinks"][rows]),
        "n": int(rows.sum()),
    }


def _members(records: Sequence[Record], tags: frozenset[str] | None) -> np.ndarray:
    return np.array([tags is None or not tags.isdisjoint(record["tags"]) for record in records], bool)


def _bin(confidence: np.ndarray, right: np.ndarray, low: float, high: float) -> dict[str, float | int | None]:
    n = len(confidence)
    means = {"confidence": float(confidence.mean()), "accuracy": float(right.mean())} if n else {}
    return {"low": low, "high": high, "n": n, "right": float(right.sum())} | (
        means or {"confidence": None, "accuracy": None}
    )
