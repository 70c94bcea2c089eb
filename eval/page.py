"""A self-contained HTML page: its style, its sections, its tables. No script, no address outside the page."""

from collections.abc import Mapping, Sequence
from html import escape

from videoauto_jax.eval.figures import Panel
from videoauto_jax.eval.theme import DARK, LIGHT, panels, style, to_svg

_VARIABLES = lambda colours: "".join(f"--{name}:{value};" for name, value in colours.items())  # noqa: E731
_STYLE = f"""
:root{{color-scheme:light dark;{_VARIABLES(LIGHT)}--page:#fbfbfa;--card:#fff;--good:#18794e;--bad:#b42318;}}
@media (prefers-color-scheme:dark){{
:root{{{_VARIABLES(DARK)}--page:#16181b;--card:#1e2125;--good:#4cc38a;--bad:#ff8a7a;}}
}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 Inter,"Helvetica Neue",Arial,system-ui,sans-serif}}
main{{max-width:1080px;margin:0 auto;padding:40px 24px 80px}}
h1{{font-size:28px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}}
h2{{font-size:19px;margin:44px 0 6px}}
p{{margin:0 0 14px;max-width:74ch}}
.lead,.note,caption{{color:var(--muted)}}
.note{{font-size:13.5px}}
.card{{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:16px;margin:12px 0}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:22px 0}}
.tile{{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px 16px}}
.tile b{{display:block;font-size:25px;line-height:1.25;font-variant-numeric:tabular-nums}}
.tile span{{color:var(--muted);font-size:13px}}
.figure svg{{display:block;width:100%;height:auto}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}}
th,td{{padding:6px 10px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}}
th{{color:var(--muted);font-weight:600}}
td.text,th.text{{text-align:left;white-space:normal}}
tbody tr:last-child td{{border-bottom:0}}
tr.rule td{{border-top:2px solid var(--grid)}}
.good{{color:var(--good);font-weight:600}}.bad{{color:var(--bad);font-weight:600}}
.bar{{display:inline-block;height:10px;background:var(--one);border-radius:3px;min-width:2px;vertical-align:middle}}
.samples{{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:14px;margin-top:14px}}
@media (max-width:560px){{.samples{{grid-template-columns:1fr}}}}
.sample{{background:var(--card);border:1px solid var(--grid);border-radius:10px;overflow:hidden}}
.sample img{{display:block;width:100%;max-height:130px;object-fit:cover;background:#000}}
.sample .body{{padding:14px 16px}}
.sample .question{{white-space:pre-wrap;margin-bottom:10px}}
.sample p,td.text{{overflow-wrap:anywhere}}
.sample dl{{display:grid;grid-template-columns:auto 1fr;gap:4px 12px;margin:0;font-size:14px}}
.sample dt{{color:var(--muted)}}.sample dd{{margin:0;overflow-wrap:anywhere}}
.filters{{display:flex;flex-wrap:wrap;gap:6px;margin:8px 0}}
.filters label{{border:1px solid var(--grid);border-radius:999px;padding:2px 12px;font-size:13px;cursor:pointer}}
.filters input{{position:absolute;opacity:0;pointer-events:none}}
.filters label:has(:checked){{background:var(--one);border-color:var(--one);color:#fff}}
.filters label:has(:focus-visible){{outline:2px solid var(--ink)}}
details{{margin:8px 0}}summary{{cursor:pointer;font-weight:600}}
.chip{{display:inline-block;border:1px solid var(--grid);border-radius:999px;padding:0 9px}}
.chip{{font-size:12px;color:var(--muted)}}
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """The whole document; `sections` are HTML, title and lead are text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><main><header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def section(title: str, text: str, *content: str) -> str:
    """A heading, a paragraph and HTML below it; "" where there is no content."""
    if not any(content):
        return ""
    paragraph = f'<p class="note">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{paragraph}{''.join(content)}</section>"


def figure(label: str, draw: Sequence[Panel], columns: int = 2, width: float = 10.2) -> str:
    """Panels as one inline SVG in a card, `width` inches wide for its text to be of the page's size."""
    if not draw:
        return ""
    with style():
        made = panels(list(draw), columns=columns, width=width / min(columns, len(draw)))
    return f'<div class="card figure">{to_svg(made, escape(label, quote=True))}</div>'


def tiles(values: Mapping[str, str]) -> str:
    """Big numbers: what they are -> the number as text."""
    tile = '<div class="tile"><b>{}</b><span>{}</span></div>'
    cells = (tile.format(escape(value), escape(name)) for name, value in values.items())
    return f'<div class="tiles">{"".join(cells)}</div>' if values else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, rules: Sequence[int] = ()) -> str:
    """A table of HTML cells; the first `text` columns are left-aligned, a strong line stands above the rows `rules`."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=text' if i < text else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    top = cells("th", [escape(name) for name in head])
    body = "".join(f"<tr{' class=rule' if n in rules else ''}>{cells('td', row)}</tr>" for n, row in enumerate(rows))
    return f'<div class="card scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(percent: float, width: int = 240) -> str:
    """A bar of a percentage."""
    return f'<span class="bar" style="width:{width * percent / 100:.0f}px"></span>'


def fold(title: str, *content: str, opened: bool = False) -> str:
    """HTML that opens below its title."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{''.join(content)}</details>"


def verdict(right: bool, *, yes: str = "right", no: str = "wrong") -> str:
    """A coloured word with a mark, so that colour alone never tells."""
    return f'<span class="good">✓ {escape(yes)}</span>' if right else f'<span class="bad">✗ {escape(no)}</span>'
