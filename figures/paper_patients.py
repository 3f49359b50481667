"""The figure of patients: mean features of their tiles in two dimensions, and distances to their own and to others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from figures.plots import COLOURS, GREY
from figures.print_style import PAGE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {"real": ("o", "#000000"), "GAN": ("s", COLOURS[5]), "RNA-GAN": ("^", COLOURS[0])}


@dataclass
class Whose:
    """One tissue's patients: kind of tiles -> places (P, 2); distances to the same patient's real tiles and others'."""

    places: dict[str, np.ndarray]
    share: np.ndarray  # (2,) of the real ones' variance along the components
    same: dict[str, np.ndarray]  # (P,)
    others: dict[str, np.ndarray]  # (P (P - 1),)
    nearest: dict[str, int]  # patients whose own real tiles are the nearest


@printed
def patients_figure(tissues: Mapping[str, Whose]) -> "Figure":
    """A row per tissue: the map, and boxes of the distances."""
    figure = page(PAGE, 62 * len(tissues) + 8)
    axes = figure.subplots(len(tissues), 2, squeeze=False, width_ratios=[1.1, 1])
    for (left, right), (tissue, whose) in zip(axes, tissues.items(), strict=True):
        for kind, points in whose.places.items():
            marker, colour = LOOKS[kind]
            if kind == "RNA-GAN":
                for pair in zip(whose.places["real"], points, strict=True):
                    left.plot(*np.transpose(pair), color=GREY, lw=0.4, zorder=1)
            face = (
                {"facecolor": "none", "edgecolor": colour, "lw": 0.8}
                if kind != "RNA-GAN"
                else {"color": colour, "lw": 0}
            )
            left.scatter(*points.T, s=12, marker=marker, label=f"{kind} tiles", **face)
        left.set(
            xlabel=f"PC 1 ({whose.share[0]:.0%} of the real ones' variance)", ylabel=f"PC 2 ({whose.share[1]:.0%})"
        )
        left.set_title(tissue.replace("_", " "))
        ticks, words = [], []
        for k, kind in enumerate(whose.same):
            for j, (name, values) in enumerate((("own", whose.same[kind]), ("others", whose.others[kind]))):
                colour = LOOKS[kind][1]
                line = {"color": colour, "lw": 0.8}
                right.boxplot(
                    values,
                    positions=[2.6 * k + 1.15 * j],
                    widths=0.65,
                    patch_artist=True,
                    boxprops={"facecolor": colour if j == 0 else "white", "edgecolor": colour, "lw": 0.8},
                    medianprops={"color": "white" if j == 0 else colour, "lw": 1},
                    whiskerprops=line,
                    capprops=line,
                    flierprops={"marker": ".", "ms": 1.5, "markerfacecolor": colour, "markeredgewidth": 0},
                )
                ticks.append(2.6 * k + 1.15 * j)
                words.append(f"{kind}\nto {name}")
        right.set_xticks(ticks, words, fontsize=5.5)
        right.set(ylabel="distance (mean of real patients = 1)", ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    letters(axes.ravel())
    return figure
