"""The figure of distances between all pairs of sets of tiles."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from figures.plots import GREY
from figures.print_style import INK, PAGE, PALE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"fid": "Fréchet distance", "kid": "Kernel distance (KID)"}
DIGITS = {"fid": 1, "kid": 2}


@printed
def matrix_figure(names: Sequence[str], cells: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]]) -> "Figure":
    """A panel per measure; its cells (a, b) -> (mean, sd), in either order of the names; floors are (a, a)."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shades = LinearSegmentedColormap.from_list("shades", ["#56b4e9", "#ffffff"])  # near is blue
    figure = page(PAGE, 10 + 80)
    axes = figure.subplots(1, len(cells))
    for ax, (measure, values) in zip(np.atleast_1d(axes), cells.items(), strict=True):
        grid = np.full((len(names), len(names)), np.nan)
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                if (found := values.get((a, b), values.get((b, a)))) is None:
                    continue
                grid[i, j] = found[0]
                digits = 0 if abs(found[0]) >= 100 else DIGITS.get(measure, 2)
                words = f"{found[0]:.{digits}f}\n± {found[1]:.{max(digits, 1)}f}".replace("-", "−")
                ax.text(j, i, words, ha="center", va="center", fontsize=5.6, color=INK, linespacing=1.2)
        ax.imshow(grid, cmap=shades, interpolation="nearest")
        for i, j in np.argwhere(np.isnan(grid)):  # not white, which is the farthest
            ax.text(j, i, "–", ha="center", va="center", fontsize=5.6, color=GREY)
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=PALE, lw=0, zorder=0.5))
        ticks = range(len(names))
        ax.set_xticks(ticks, [name.replace("_", "\n") for name in names], fontsize=5.8)
        ax.set_yticks(ticks, [name.replace("_", "\n") for name in names], fontsize=5.8)
        ax.tick_params(length=0)
        ax.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", lw=1.2)
        ax.tick_params(which="minor", length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(TITLES.get(measure, measure), loc="left")
    letters(list(np.atleast_1d(axes)))
    return figure
