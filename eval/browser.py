"""A browser of answered samples with filters, without a script: hidden radio buttons and `:has()`."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape

from videoauto_jax.eval.records import Record
from videoauto_jax.eval.samples import card
from videoauto_jax.eval.scoring import is_right, thinks


def browser(records: Sequence[Record], threshold: float) -> str:
    """Cards of all records below rows of filters: by source, by verdict, by what the gate does."""
    if not records:
        return ""
    filters = {"source": _sources(records), "verdict": _VERDICTS, "gate": _gates(threshold)}
    rows, rules = [], []
    for group, tests in filters.items():
        if group == "source" and len(tests) < 2:
            continue
        names = ["all", *tests]
        buttons = (_button(group, number, name) for number, name in enumerate(names))
        rows.append(f'<div class="filters">{"".join(buttons)}</div>')
        rules += [_rule(group, number) for number in range(1, len(names))]
    with ThreadPoolExecutor() as threads:  # frames of some hundred videos
        shown = "".join(threads.map(lambda record: card(record, threshold, _marks(record, filters)), records))
    style = f"<style>{''.join(rules)}</style>"
    return f'{style}<div class="browser">{"".join(rows)}<div class="samples">{shown}</div></div>'


_Test = Callable[[Record], bool]
_right = lambda record, which: is_right(record, which) >= 0.5  # noqa: E731
_VERDICTS: Mapping[str, _Test] = {
    "both right": lambda record: _right(record, "first") and _right(record, "second"),
    "both wrong": lambda record: not _right(record, "first") and not _right(record, "second"),
    "mended by thinking": lambda record: not _right(record, "first") and _right(record, "second"),
    "spoilt by thinking": lambda record: _right(record, "first") and not _right(record, "second"),
}


def _sources(records: Sequence[Record]) -> Mapping[str, _Test]:
    names = dict.fromkeys(str(record["source"]) for record in records)
    return {name: lambda record, name=name: record["source"] == name for name in names}


def _gates(threshold: float) -> Mapping[str, _Test]:
    return {
        "answers at once": lambda record: not thinks(record, threshold),
        "thinks": lambda record: thinks(record, threshold),
    }


def _marks(record: Record, filters: Mapping[str, Mapping[str, _Test]]) -> list[str]:
    """The classes of a card: one for every filter that shows it."""
    return [
        f"{group}-{number}"
        for group, tests in filters.items()
        for number, test in enumerate(tests.values(), 1)
        if test(record)
    ]


def _button(group: str, number: int, name: str) -> str:
    checked = " checked" if number == 0 else ""
    return f'<label><input type="radio" name="{group}" class="pick-{group}-{number}"{checked}>{escape(name)}</label>'


def _rule(group: str, number: int) -> str:
    return f".browser:has(.pick-{group}-{number}:checked) .sample:not(.{group}-{number}){{display:none}}"
