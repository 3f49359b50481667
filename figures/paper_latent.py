"""The figures of the latent space: maps of profiles, errors of reconstruction."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from figures.plots import COLOURS, GREY, _padded, colour_of
from figures.print_style import MARKERS, PAGE, PALE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@printed
def map_figure(
    maps: Mapping[str, np.ndarray],
    tissue: np.ndarray,
    kind: np.ndarray,
    held_out: np.ndarray,
    share: Sequence[float],
) -> "Figure":
    """A row per map ("UMAP", "PC": points (n, 2)), a column per kind of profile; colour and marker: tissue.

    share: of the variance along the two principal components; held_out (n,) bool: ringed in black.
    """
    kinds = [k for k in ("real", "reconstructed", "generated") if (kind == k).any()]
    figure = page(PAGE, 58 * len(maps) + 8)
    axes = figure.subplots(len(maps), len(kinds), squeeze=False)
    colours = colour_of(list(tissue))
    for row, (name, points) in zip(axes, maps.items(), strict=True):
        for ax, k in zip(row, kinds, strict=True):
            if k != "real":
                ax.scatter(*points[kind == "real"].T, s=4, color=PALE, lw=0, rasterized=True)
            for (which, colour), marker in zip(colours.items(), MARKERS * len(colours), strict=False):
                for ringed in (False, True):
                    here = (kind == k) & (tissue == which) & (held_out == ringed)
                    edge = {"lw": 0.5, "edgecolor": "black"} if ringed else {"lw": 0}
                    ax.scatter(*points[here].T, s=9, marker=marker, color=colour, **edge)
            ax.set(xlim=_padded(points[:, 0]), ylim=_padded(points[:, 1]))
            if name == "UMAP":
                ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
                ax.set_title(f"{k} (n = {int((kind == k).sum())})")
            else:
                ax.set(xlabel=f"PC 1 ({share[0]:.0%} of the variance)", ylabel=f"PC 2 ({share[1]:.0%})")
    handles = {}
    for (which, colour), marker in zip(colours.items(), MARKERS * len(colours), strict=False):
        handles[which.replace("_", " ")] = axes[0, 0].scatter([], [], s=12, marker=marker, color=colour, lw=0)
    if held_out.any():
        handles["held-out donor"] = axes[0, 0].scatter([], [], s=12, color="white", lw=0.6, edgecolor="black")
    if len(kinds) > 1:
        handles["real, for comparison"] = axes[0, 0].scatter([], [], s=9, color=PALE, lw=0)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    letters([row[0] for row in axes])
    return figure


@printed
def errors_figure(summary: pd.DataFrame, per_gene: Mapping[str, np.ndarray], unit: str) -> "Figure":
    """By tissue with intervals (donors, method, mse, low, high), over genes, and gene by gene.

    per_gene: method -> (genes,); the first is the beta-VAE, the second the tissue mean.
    """
    figure = page(PAGE, 64)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1.15, 1])
    methods = list(per_gene)
    groups = list(dict.fromkeys(summary["donors"]))
    for k, method in enumerate(methods):
        rows = summary[summary["method"] == method].set_index("donors").loc[groups]
        x = np.arange(len(groups)) + (k - (len(methods) - 1) / 2) * 0.16
        away = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["mse"].to_numpy(float))
        style = {"fmt": MARKERS[k], "ms": 3.5, "lw": 0.8, "color": COLOURS[k]}
        left.errorbar(x, rows["mse"], away, **style)
        values = np.sort(per_gene[method][np.isfinite(per_gene[method])])
        style = {"color": COLOURS[k], "lw": 1, "ls": ("-", "--", "-.", ":")[k % 4]}
        middle.plot(values, np.arange(1, len(values) + 1) / len(values), **style)
        middle.plot([], [], marker=MARKERS[k], ms=3.5, label=method, **style)  # for the legend: its mark and its line
    left.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    left.set(
        xlim=(-0.5, len(groups) - 0.5), ylim=(0, None), ylabel=f"MSE ({_short(unit)})", xlabel="held-out donors of"
    )
    ends = float(np.nanquantile(np.concatenate(list(per_gene.values())), 0.99))
    middle.set(xlim=(0, ends), ylim=(0, 1), xlabel=f"MSE of a gene ({_short(unit)})", ylabel="share of genes below")
    x, y = per_gene[methods[1]], per_gene[methods[0]]
    right.scatter(x, y, s=2, color=COLOURS[0], alpha=0.35, lw=0, rasterized=True)
    top = float(np.nanquantile(np.concatenate([x, y]), 0.995)) * 1.05
    right.plot([0, top], [0, top], color=GREY, lw=0.8, ls=":")
    right.set(xlim=(0, top), ylim=(0, top), xlabel=f"MSE, {methods[1]}", ylabel=f"MSE, {methods[0]}")
    figure.legend(*middle.get_legend_handles_labels(), handlelength=3.2, loc="outside lower center", ncols=len(methods))
    letters([left, middle, right])
    return figure


def _short(unit: str) -> str:
    return "squared z-scores" if "z-score" in unit else unit
