"""The figure of the classifier: runs side by side, and scores against the number of real tiles."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from figures.plots import COLOURS, GREY
from figures.print_style import COLUMN, MARKERS, PAGE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@printed
def classifier_figure(bars: pd.DataFrame, curves: pd.DataFrame, scores: Mapping[str, str], chance: float) -> "Figure":
    """Runs (run, score, value, low, high) as points; curves (start, train_tiles, ...) as lines, a panel a score."""
    runs = list(dict.fromkeys(bars["run"]))
    wide = len(curves) > 0
    figure = page(PAGE if wide else COLUMN, max(52, 7 * len(runs) + 24))
    axes = np.atleast_1d(figure.subplots(1, 1 + len(scores) if wide else 1))
    first = axes[0]
    for k, (score, words) in enumerate(scores.items()):
        rows = bars[bars["score"] == score].set_index("run").loc[runs]
        y = np.arange(len(runs)) + (k - (len(scores) - 1) / 2) * 0.26
        away = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["value"].to_numpy(float))
        style = {"fmt": MARKERS[k], "ms": 3.2, "lw": 0.9, "color": COLOURS[k]}
        first.errorbar(rows["value"].astype(float), y, xerr=away, label=words, **style)
    first.axvline(chance, color=GREY, lw=0.6, ls=":")
    low = float(np.nanmin(bars[["value", "low"]].to_numpy(float)))
    first.set_yticks(range(len(runs)), [run.replace("_", " ") for run in runs])
    first.set(ylim=(len(runs) - 0.5, -0.5), xlim=(min(0.4, low - 0.05), 1.02), xlabel="score (dotted: chance)")
    first.legend(loc="upper center", bbox_to_anchor=(0.45, -0.25), ncols=2)
    for ax, (score, words) in zip(axes[1:], scores.items(), strict=False):
        for k, (start, rows) in enumerate(curves[curves["score"] == score].groupby("start", sort=True)):
            rows = rows.sort_values("train_tiles")
            x = rows["train_tiles"] * 1.03 ** (2 * k - 1)  # side by side
            away = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["value"].to_numpy(float))
            style = {"marker": MARKERS[k], "ms": 3, "lw": 0.9, "color": COLOURS[k], "ls": ("-", "--")[k % 2]}
            ax.errorbar(x, rows["value"], away, label=start, elinewidth=0.7, **style)
        ax.set_xscale("log")
        ticks = sorted(set(curves["train_tiles"].round().astype(int)))
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.set_xticks([], minor=True)
        least = float(np.nanmin(curves.loc[curves["score"] == score, ["value", "low"]].to_numpy(float)))
        spare = 0.04 * max(1 - least, 0.1)  # so little that no tick lies above 1
        ax.set(xlabel="real tiles trained on, per fold", ylabel=words, ylim=(least - spare, 1 + spare))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=1)
    if wide:
        letters(axes)
    return figure
