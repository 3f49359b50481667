"""The page of a folder of tile stores: each slide with its picture, what was left out of it, its stain; problems first.

Pictures are the small files in previews/, loaded as they are scrolled to, so the page stays light with thousands of
slides.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

from figures.page import Section, note, render, table

MOST_FINE = 2000  # slides without a problem on the page; the rest is in report.csv
HARD = 0.5  # a larger share of tiles left out is a problem
FAR = 5.0  # robust standard deviations from the median stain that are a problem; ours
LEAST_SLIDES = 8  # to know what stain is usual
STYLE = """<style>
.slide { display: grid; grid-template-columns: 450px 1fr; gap: 1.2rem; padding: .7rem 0;
  border-bottom: 1px solid var(--line); content-visibility: auto; contain-intrinsic-size: auto 190px; }
.slide img { max-width: 444px; max-height: 220px; display: block; border: 1px solid var(--line); }
.slide h3 { margin: 0; overflow-wrap: anywhere; } .slide p { margin: .15rem 0; font-size: .9rem; }
.slide .why { color: #a03000; overflow-wrap: anywhere; }
@media (max-width: 800px) { .slide { grid-template-columns: 1fr; } }
</style>"""


@dataclass
class SlideRow:
    """One slide of the report; numbers that are not known are None."""

    slide: str
    status: str  # cut | kept | failed
    tiles: int
    candidates: int
    left_out: dict[str, int]  # reason -> tiles
    mpp: float | None
    mpp_source: str
    tissue: float | None  # share of the slide
    haematoxylin: float | None  # mean optical density over the stained pixels of the tiles
    eosin: float | None
    reason: str
    pictured: bool  # previews/<slide>.jpg is there
    problems: list[str] = field(default_factory=list)

    @property
    def share_left_out(self) -> float:
        """Of the tiles that were looked at."""
        out = sum(self.left_out.values())
        return out / (out + self.tiles) if out else 0.0


def find_problems(rows: Sequence[SlideRow]) -> None:
    """Fill in `problems`, in words: the reason, many tiles left out, a stain far from the other slides'."""
    for row in rows:
        row.problems = [row.reason] if row.reason else []
        if row.status != "failed" and row.share_left_out > HARD:
            row.problems.append(f"{row.share_left_out:.0%} of the tiles looked at were left out")
    for name in ("haematoxylin", "eosin"):
        known = [(row, value) for row in rows if (value := getattr(row, name)) is not None]
        if len(known) < LEAST_SLIDES:
            continue
        middle = statistics.median(value for _, value in known)
        spread = 1.4826 * statistics.median(abs(value - middle) for _, value in known)  # of a normal: its sd
        for row, value in known:
            if abs(value - middle) > FAR * max(spread, 0.01):
                row.problems.append(f"{name} {value:.2f}; the median of the slides is {middle:.2f}")


def slide_page(title: str, lead: str, rows: Sequence[SlideRow]) -> str:
    """Return the page, HTML that shows the pictures beside it. Fills in the rows' `problems`."""
    find_problems(rows)
    failed = _worst_first([r for r in rows if r.status == "failed"])
    doubtful = _worst_first([r for r in rows if r.status != "failed" and r.problems])
    fine = _worst_first([r for r in rows if r.status != "failed" and not r.problems])
    reasons = {name: sum(r.left_out.get(name, 0) for r in rows) for row in rows[:1] for name in row.left_out}
    counts = [(name, f"{n:,}", sum(bool(r.left_out.get(name)) for r in rows)) for name, n in reasons.items()]
    facts = [
        (f"{len(rows):,}", "slides"),
        (f"{sum(r.tiles for r in rows):,}", "tiles"),
        (f"{len(failed):,}", "slides failed"),
        (f"{len(doubtful):,}", "slides to look at"),
    ]
    sections = [
        Section("why", "Tiles left out", "", [STYLE, table(["reason", "tiles", "slides"], counts, "All slides.")]),
        Section("failed", "Failed", "No tiles; the same command tries them again.", _blocks(failed)),
        Section("doubtful", "To look at", "Cut, but look before you use them.", _blocks(doubtful)),
        Section("fine", "The others", "Most tiles left out first.", _blocks(fine[:MOST_FINE])),
    ]
    if len(fine) > MOST_FINE:
        sections[-1].blocks.append(note(f"{len(fine) - MOST_FINE:,} more without a problem are in report.csv."))
    footer = "Left: the slide. Right: tissue in green, the tiles taken in blue. A click shows it larger."
    return render(title, lead, facts, sections, footer)


def _worst_first(rows: list[SlideRow]) -> list[SlideRow]:
    return sorted(rows, key=lambda r: (-len(r.problems), -r.share_left_out, r.slide))


def _blocks(rows: Sequence[SlideRow]) -> list[str]:
    return [_block(row) for row in rows] or [note("None.")]


def _block(row: SlideRow) -> str:
    left_out = ", ".join(f"{n:,} {name}" for name, n in row.left_out.items() if n) or "none"
    facts = [f"{row.tiles:,} tiles of {row.candidates:,} with tissue; left out: {left_out}"]
    if row.mpp is not None:
        facts.append(f"{row.mpp:g} um per pixel ({row.mpp_source})")
    if row.tissue is not None:
        facts.append(f"tissue {row.tissue:.0%} of the slide")
    if row.haematoxylin is not None and row.eosin is not None:
        facts.append(f"haematoxylin {row.haematoxylin:.2f}, eosin {row.eosin:.2f}")
    name = quote(row.slide, safe="")
    picture = (
        f'<a href="previews/{name}.png"><img loading="lazy" src="previews/{name}.jpg" alt="{escape(row.slide)}"></a>'
        if row.pictured
        else ""
    )
    words = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    why = "".join(f'<p class="why">{escape(problem)}</p>' for problem in row.problems)
    return f'<div class="slide"><div>{picture}</div><div><h3>{escape(row.slide)}</h3>{why}{words}</div></div>\n'
