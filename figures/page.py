"""A self-contained HTML page: pictures inline, one style sheet inline, nothing fetched; readable on paper too."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from figures.plots import settled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { --ink: #1d2328; --soft: #5b6670; --line: #d8dee3; --wash: #f5f7f8; --accent: #0a5c8f; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 "Helvetica Neue", Helvetica, Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .4rem; padding-top: 1rem; border-top: 2px solid var(--ink); }
h2 span { color: var(--soft); font-weight: 400; margin-right: .45rem; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .2rem; }
p { margin: .4rem 0 .9rem; max-width: 50rem; }
.lead { font-size: 1.08rem; color: var(--soft); }
nav { margin: 1.4rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .8rem; margin: 1.6rem 0 0; }
.fact { background: var(--wash); border-left: 3px solid var(--accent); padding: .7rem .9rem; }
.fact b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.fact small { color: var(--soft); display: block; line-height: 1.35; }
figure { margin: 1rem 0 1.6rem; } figure img { max-width: 100%; height: auto; display: block; }
figcaption, caption { color: var(--soft); font-size: .86rem; line-height: 1.45; margin-top: .5rem; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; }
.wide { overflow-x: auto; margin: 1rem 0 1.6rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child, .text { text-align: left; } thead th { border-bottom: 2px solid var(--ink); }
thead th { vertical-align: bottom; }
table.settings { font-size: .78rem; } table.settings td { text-align: left; overflow-wrap: anywhere; }
code { font: .86em/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.missing { border: 1px dashed #b98a00; background: #fffaf0; padding: .8rem 1rem; margin: 1rem 0; max-width: 60rem; }
.missing code { display: block; white-space: pre-wrap; margin-top: .3rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; color: var(--soft); }
@media print {
  @page { size: A4; margin: 14mm; } body { font-size: 10pt; } main { padding: 0; max-width: none; }
  nav { display: none; }
  h2 { margin-top: 1.4rem; break-after: avoid; } h3 { break-after: avoid; } figure, tr, .fact { break-inside: avoid; }
  section > p { break-after: avoid; } table { font-size: 7.5pt; } table.settings { font-size: 6.5pt; }
  th, td { padding: .18rem .4rem; } table:not(.settings) td { white-space: nowrap; } .wide { overflow: visible; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
LEFT = ' class="text"'


@dataclass
class Section:
    """One part of the page: a heading, a sentence or two on what it shows, then pictures, tables and notes."""

    key: str  # anchor, e.g. "latent"
    title: str
    text: str  # plain text
    blocks: list[str] = field(default_factory=list)  # HTML made by the functions below


def picture(figure: "Figure", caption: str, alt: str, dpi: int = 144) -> str:
    """Return a matplotlib Figure as an HTML figure with an inline PNG. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    settled(figure, dpi).savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    width = round(figure.get_size_inches()[0] * 96)  # CSS pixels per inch
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, settings: bool = False) -> str:
    """Return an HTML table; cells are text, or `Cell` for a tinted one. `settings`: small type, text to the left."""
    words = [any(_is_text(row[k]) for row in rows) for k in range(len(headers))]  # columns of words stand to the left
    head = "".join(f'<th scope="col"{LEFT if w else ""}>{escape(h)}</th>' for h, w in zip(headers, words, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row, words))}</tr>" for row in rows)
    kind = ' class="settings"' if settings else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        f"<caption>{escape(caption)}</caption></table></div>"
    )


@dataclass
class Cell:
    """A table cell with a tint from 0 (white) to 1 (blue); the text stays readable on it."""

    text: str
    tint: float


def heading(text: str) -> str:
    """Return a small heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def note(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def missing(what: str, command: str) -> str:
    """Return the box that stands where a result is not there yet, with the command that makes it."""
    return f'<div class="missing">{escape(what)} Made by: <code>{escape(command)}</code></div>'


def render(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str) -> str:
    """Return the page. `facts`: (number, what it is) for the boxes at the top."""
    boxes = "".join(f'<div class="fact"><b>{escape(n)}</b><small>{escape(t)}</small></div>' for n, t in facts)
    links = "".join(f'<a href="#{s.key}">{i}. {escape(s.title)}</a>' for i, s in enumerate(sections, 1))
    parts = "".join(
        f'<section id="{s.key}"><h2><span>{i}</span>{escape(s.title)}</h2>'
        f"{f'<p>{escape(s.text)}</p>' if s.text else ''}{''.join(s.blocks)}</section>\n"
        for i, s in enumerate(sections, 1)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><div class="facts">{boxes}</div>'
        f"<nav>{links}</nav>\n{parts}<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value[:1].isalpha()


def _cell(value: Any, text: bool) -> str:
    if isinstance(value, Cell):
        share = round(100 * min(max(value.tint, 0.0), 1.0) * 0.55)  # at most 55 % blue: black text stays at 7 to 1
        return f'<td style="background: color-mix(in srgb, #56b4e9 {share}%, white)">{escape(value.text)}</td>'
    shown = f"{value:.4g}" if isinstance(value, float) else escape(str(value))
    return f"<td{LEFT if text else ''}>{shown}</td>"
