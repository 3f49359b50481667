"""The page of an evaluation of the conditioning: values beside their floor and ceiling, and responses along shifts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from figures.plots import COLOURS
from figures.print_style import INK, PAGE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("value", "low", "high", "chance", "null_q99", "ceiling", "control")


@printed
def conditioning_figure(columns: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> "Figure":
    """Per tissue a column: (rows with group, what, COLUMNS; doses with group, what, value, p)."""
    rows = max(len(values) for values, _ in columns.values())
    directions = max(doses["group"].nunique() for _, doses in columns.values())
    figure = page(PAGE, 4.6 * rows + 5.2 * directions + 46)
    axes = figure.subplots(2, len(columns), squeeze=False, height_ratios=[4.6 * rows + 8, 5.2 * directions + 16])
    least = min(float(values[list(COLUMNS)].astype(float).min(axis=None)) for values, _ in columns.values())
    least = min(-0.25, least - 0.05)
    for k, (tissue, (values, doses)) in enumerate(columns.items()):
        _values(axes[0, k], values)
        axes[0, k].set_xlim(least, 1.06)
        axes[0, k].set_title(tissue.replace("_", " "))
        _doses(axes[1, k], doses)
        if k:
            axes[0, k].set_yticklabels([])
    figure.legend(*_handles(axes[0, 0]), loc="outside lower center", ncols=5)
    letters(axes.ravel())
    return figure


def _values(ax: "Axes", rows: pd.DataFrame) -> None:
    rows = rows.reset_index(drop=True)
    numbers = rows[list(COLUMNS)].astype(float)
    starts = [i for i in range(1, len(rows)) if rows["group"][i] != rows["group"][i - 1]]
    for start in starts:
        ax.axhline(start - 0.5, color="#d5dade", lw=0.5)
    for i, row in numbers.iterrows():
        if np.isfinite(row["null_q99"]):
            low = row["chance"] if np.isfinite(row["chance"]) else 0.0
            ax.barh(i, row["null_q99"] - low, 0.5, left=low, color="#c3cbd1", lw=0)
        if np.isfinite(row["chance"]):
            ax.plot([row["chance"]] * 2, [i - 0.36, i + 0.36], color=INK, lw=0.8, ls=(0, (1, 1)))
        if np.isfinite(row["low"]):
            ax.plot([row["low"], row["high"]], [i, i], color=COLOURS[0], lw=1)
    y = np.arange(len(rows))
    ax.scatter(numbers["ceiling"], y, s=15, marker="D", facecolor="none", edgecolor=INK, lw=0.7, zorder=3)
    ax.scatter(numbers["control"], y, s=14, marker="x", color=COLOURS[1], lw=1, zorder=4)
    ax.scatter(numbers["value"], y, s=14, color=COLOURS[0], lw=0, zorder=5)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel="value (1 is the most)")
    ax.set_yticks(y, rows["what"])
    ax.tick_params(axis="y", length=0)


def _doses(ax: "Axes", doses: pd.DataFrame) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("signed", ["#e69f00", "#ffffff", "#56b4e9"])
    down, across = list(dict.fromkeys(doses["group"])), list(dict.fromkeys(doses["what"]))
    grid = np.full((len(down), len(across)), np.nan)
    for line in doses.itertuples():
        i, j = down.index(line.group), across.index(line.what)
        if line.value is None or not np.isfinite(line.value):
            continue
        grid[i, j] = line.value
        weight = "bold" if line.p is not None and line.p < 0.05 else "normal"
        words = f"{line.value:.2f}".replace("-", "−")
        ax.text(j, i, words, ha="center", va="center", fontsize=5.4, fontweight=weight, color=INK)
    ax.imshow(grid, cmap=shades, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(across)), [name.replace("haematoxylin", "haemat.").replace(" ", "\n") for name in across])
    ax.tick_params(axis="x", labelsize=5.2)
    ax.set_yticks(range(len(down)), down, fontsize=5.6)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(ylabel="along")


def _handles(ax: "Axes") -> tuple[list[object], list[str]]:
    from matplotlib.patches import Patch

    made = {
        "RNA-GAN, 95 %": ax.errorbar([], [], xerr=[], fmt="o", ms=3.6, lw=1, color=COLOURS[0]),
        "chance": ax.plot([], [], color=INK, lw=0.8, ls=(0, (1, 1)))[0],
        "random pairings, 99 %": Patch(facecolor="#c3cbd1"),
        "real tiles": ax.scatter([], [], s=15, marker="D", facecolor="none", edgecolor=INK, lw=0.7),
        "without expression": ax.scatter([], [], s=14, marker="x", color=COLOURS[1], lw=1),
    }
    return list(made.values()), list(made)
