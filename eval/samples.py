"""Answered samples as cards: the visual, both answers, the thought, the confidence, the verdict."""

import json
from collections.abc import Mapping, Sequence
from html import escape

from videoauto_jax.eval.media import frame_strip
from videoauto_jax.eval.page import verdict
from videoauto_jax.eval.records import GROUNDED, Record
from videoauto_jax.eval.scoring import is_right, thinks
from videoauto_jax.protocol.prompts import BOXED_SUFFIX

LONGEST_THOUGHT = 700
"""Characters of a thought that a card shows."""


def pick_samples(records: Sequence[Record], threshold: float, count: int = 8) -> list[Record]:
    """Samples that show different things: each combination of last tag, thinking and verdicts in turn, in their order.

    What is picked depends on the records and their order only, and samples with a visual come first.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in sorted(records, key=lambda record: record["media"] is None):
        verdicts = tuple(is_right(record, which) >= 0.5 for which in ("first", "second"))
        skill = record["tags"][-1] if record["tags"] else record["problem_type"]
        groups.setdefault((thinks(record, threshold), verdicts, skill), []).append(record)
    picked: list[Record] = []
    seen: list[str] = []
    # One sample of every kind of verdict before a second one of any, and rare skills before those already shown.
    while groups and len(picked) < count:
        shown = [key[:2] for key, _ in seen]
        key = min(groups, key=lambda key: (shown.count(key[:2]), [k[2] for k, _ in seen].count(key[2])))
        record = groups[key].pop(0)
        if not groups[key]:
            del groups[key]
        picked.append(record)
        seen.append((key, record["id"]))
    return picked


def cards(records: Sequence[Record], threshold: float) -> str:
    """The cards of all records, in a grid."""
    shown = "".join(card(record, threshold) for record in records)
    return f'<div class="samples">{shown}</div>' if shown else ""


def card(record: Record, threshold: float, marks: Sequence[str] = ()) -> str:
    """One sample; `marks` are classes of its element."""
    strip = frame_strip(record["media"]) if record["media"] else None
    picture = f'<img alt="frames of {escape(record["id"], quote=True)}" src="{strip}">' if strip else ""
    chips = " ".join(f'<span class="chip">{escape(tag)}</span>' for tag in (*record["tags"], record["source"]))
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _facts(record, threshold).items())
    question = escape(record["question"].removesuffix(BOXED_SUFFIX).strip())
    return (
        f'<article class="{" ".join(("sample", *marks))}">{picture}<div class="body"><p>{chips}</p>'
        f'<p class="question">{question}</p><dl>{rows}</dl></div></article>'
    )


def _facts(record: Record, threshold: float) -> dict[str, str]:
    confidence = f"{record['confidence']:.3f}" if record["confidence"] >= 0 else "none"
    gate = "below the threshold: thinks" if thinks(record, threshold) else "enough: answers at once"
    facts = {
        "truth": escape(_truth(record["truth"])),
        "first answer": f"{_answer(record, 'first_answer')} {_verdict(record, 'first')}",
        "confidence": f"{confidence} <span class=chip>{gate}</span>",
    }
    thought = (record["reasoning"] or "").strip()
    if thought:
        cut = thought[:LONGEST_THOUGHT] + (" …" if len(thought) > LONGEST_THOUGHT else "")
        facts["thought"] = escape(cut)
    if record["finish_reason"] != "exit":
        facts["final answer"] = f"{_answer(record, 'final_answer')} {_verdict(record, 'second')}"
    return facts | {"tokens": f"{record['first_tokens']} to the first answer, {record['tokens']} in all"}


def _answer(record: Record, field: str) -> str:
    """The box's content, and what a benchmark read in it where that is something else."""
    said, read = record[field], record.get(f"read_{'first' if field == 'first_answer' else 'second'}", record[field])
    if not said:
        return "<i>(none)</i>"
    chip = "" if read == said else f" <span class=chip>read as {escape(read or 'nothing')}</span>"
    return escape(said) + chip


def _verdict(record: Record, which: str) -> str:
    word = verdict(is_right(record, which) >= 0.5)
    return f"{word} (IoU {record[f'iou_{which}']:.2f})" if record["problem_type"] in GROUNDED else word


def _truth(truth: object) -> str:
    if isinstance(truth, Mapping):
        return f"{truth.get('answer')} <> {json.dumps(truth.get('segment'))}"
    return truth if isinstance(truth, str) else json.dumps(truth)
