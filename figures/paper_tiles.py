"""Pages of tiles: patient by patient, and for profiles of another study."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from figures.plots import COLOURS, GREY
from figures.print_style import INK, MM, PAGE, page, printed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL, BETWEEN, HEADING = 15.0, 0.6, 4.5  # mm: beside a row, between tiles, above a block


@printed
def tile_page(blocks: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """A block per patient with a row per kind of tiles, uint8 (n, H, W, 3), as wide as the page."""
    most = max(len(tiles) for rows in blocks.values() for tiles in rows.values())
    side = (PAGE / MM - LABEL - 1 - (most - 1) * BETWEEN) / most
    height = sum(HEADING + len(rows) * (side + BETWEEN) for rows in blocks.values()) + 1
    figure = page(PAGE, height, "none")
    ax = canvas(figure, height)
    top = 0.0
    for name, rows in blocks.items():
        ax.text(LABEL, top + HEADING - 1.2, name, fontsize=6.5, fontweight="bold", color=INK, va="baseline")
        top += HEADING
        for kind, tiles in rows.items():
            ax.text(LABEL - 1, top + side / 2, kind, ha="right", va="center", fontsize=6.5, color=INK)
            row_of_tiles(ax, tiles, LABEL, top, side)
            top += side + BETWEEN
    return figure


@printed
def foreign_page(
    rows: Sequence[tuple[str, np.ndarray, Mapping[str, float]]], limit: float, kinds: Sequence[str]
) -> "Figure":
    """A row per profile: its name, its tiles uint8 (n, H, W, 3), and bars of its percentiles by kind of distance.

    limit: the percentile beyond which a profile is called far.
    """
    most, bars = max(len(tiles) for _, tiles, _ in rows), 44.0
    label, step = 32.0, 4.0
    side = (PAGE / MM - label - bars - 8 - (most - 1) * BETWEEN) / most
    each = max(side, 4.2 * len(kinds) + 1)
    height = len(rows) * (each + step) + 8.5
    figure = page(PAGE, height, "none")
    ax = canvas(figure, height)
    left = PAGE / MM - bars - 3
    for k, (name, tiles, distances) in enumerate(rows):
        top = 3 + k * (each + step)
        ax.text(label - 1.5, top + each / 2, name, ha="right", va="center", fontsize=6, color=INK, linespacing=1.35)
        row_of_tiles(ax, tiles, label, top, side)
        for j, kind in enumerate(kinds):
            y, value = top + 1 + 4.2 * j, distances[f"{kind}_percentile"]
            colour = COLOURS[1] if value > limit else COLOURS[0]
            width = bars * value / 100
            ax.barh(y + 1.5, width, 3, left=left, color=colour, lw=0)
            inside = width > bars / 2
            x, words = left + width + (-0.8 if inside else 0.8), f"{kind} {distances[kind]:.2f} x, {value:.1f} %"
            style = {"color": "white" if inside else INK, "ha": "right" if inside else "left"}
            ax.text(x, y + 1.5, words, va="center", fontsize=5.5, **style)
    bottom = 3 + len(rows) * (each + step) - step + 1.5
    ax.plot([left, left + bars], [bottom, bottom], color=INK, lw=0.5)
    for value in (0, 50, 100):
        x = left + bars * value / 100
        ax.plot([x, x], [bottom, bottom + 0.8], color=INK, lw=0.5)
        ax.text(x, bottom + 1.2, str(value), ha="center", va="top", fontsize=5.5)
    ax.text(left + bars / 2, bottom + 3.6, "percentile of held-out donors", ha="center", va="top", fontsize=6)
    x = left + bars * limit / 100
    ax.plot([x, x], [2, bottom], color=GREY, lw=0.6, ls=":")
    return figure


def canvas(figure: "Figure", height: float) -> "Axes":
    """Return one axes over the whole figure, in millimetres from the upper left; one is far quicker than many."""
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, PAGE / MM), ylim=(height, 0))
    ax.set_axis_off()
    return ax


def row_of_tiles(ax: "Axes", tiles: np.ndarray, left: float, top: float, side: float) -> None:
    """Draw tiles (n, H, W, 3) side by side, `side` mm each."""
    limits = ax.get_xlim(), ax.get_ylim()
    for k, tile in enumerate(tiles):
        x = left + k * (side + BETWEEN)
        ax.imshow(tile, extent=(x, x + side, top + side, top), interpolation="antialiased", aspect="auto")
    ax.set(xlim=limits[0], ylim=limits[1])
