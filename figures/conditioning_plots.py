"""Plots of an evaluation: matrices of distances, ranks, curves along shifts. Data in, a matplotlib Figure out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from figures.plots import COLOURS, GREY, _axes, _padded, _styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@_styled
def matrix_and_ranks(distance: np.ndarray, name: str) -> "Figure":
    """Distances (P, P), each row in units of its own spread, and a histogram of the rank of the row's own column."""
    figure, (left, right) = _axes(8.6, 3.9, 1, 2)
    spread = distance.std(1, keepdims=True)
    shown = np.divide(distance - distance.mean(1, keepdims=True), spread, out=np.zeros_like(distance), where=spread > 0)
    image = left.imshow(shown, cmap="cividis", vmin=-2, vmax=2, interpolation="nearest")
    figure.colorbar(image, ax=left, shrink=0.8, label="sd from the row's mean")
    left.set(xlabel="real tiles of patient q", ylabel="generated tiles for patient p", title=name)
    ranks = 1 + (distance < distance.diagonal()[:, None]).sum(1)
    patients = len(distance)
    bins = np.linspace(0.5, patients + 0.5, min(patients, 25) + 1)
    right.hist(ranks, bins, color=COLOURS[0])
    right.axhline(patients / (len(bins) - 1), color=GREY, lw=1, ls=":", label="chance")
    right.set(xlabel="rank of the patient's own real tiles", ylabel="patients", title="Ranks (1 is best)")
    right.legend()
    return figure


@_styled
def agreement_panels(panels: Sequence[tuple[str, np.ndarray, np.ndarray, str]]) -> "Figure":
    """Generated (P,) against real (P,), one panel per measure (title, real, generated, note); dotted: equality."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _axes(2.9 * columns, 2.75 * lines, lines, columns)
    for ax, (title, x, y, note) in zip(axes, panels, strict=False):
        fine = np.isfinite(x) & np.isfinite(y)
        ax.scatter(x[fine], y[fine], s=18, color=COLOURS[0], lw=0)
        across, up = _padded(x[fine]), _padded(y[fine])
        ends = min(across[0], up[0]), max(across[1], up[1])
        ax.plot(ends, ends, color=GREY, lw=0.8, ls=":")
        ax.set(xlim=across, ylim=up)
        ax.set_title(f"{title}\n{note}", fontsize=8.5)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.supxlabel("mean of a patient's real tiles", fontsize=8.5)
    figure.supylabel("mean of the patient's generated tiles", fontsize=8.5)
    return figure


@_styled
def dose_curves(
    directions: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]], units: Mapping[str, str]
) -> "Figure":
    """A panel per measure, in it a line per direction (alphas (s,), measure -> (patients, s)): the mean over patients.

    Bold, with patients in grey: the direction that bears the measure's name. alphas are scaled to [-1, 1].
    """
    names = list(next(iter(directions.values()))[1])
    figure, axes = _axes(8.7, 5.0, 2, 3)
    colours = dict(zip(directions, (*COLOURS, "#A05A2C", GREY) * 3, strict=False))
    for ax, name in zip(axes, names, strict=False):
        for direction, (alphas, values) in directions.items():
            own = direction == name
            x = alphas / np.abs(alphas).max()
            if own:
                ax.plot(x, values[name].T, color="#c3cbd1", lw=0.8)
            n = np.isfinite(values[name]).sum(0)
            total = np.where(np.isfinite(values[name]), values[name], 0).sum(0)
            mean = np.divide(total, n, out=np.full(len(x), np.nan), where=n > 0)
            style = {"lw": 2.4, "marker": "o", "ms": 4, "zorder": 3} if own else {"lw": 1.0, "ls": "--"}
            ax.plot(x, mean, color=colours[direction], label=direction.replace("_", " "), **style)
        ax.set_title(f"{name.replace('_', ' ')}\n{units[name]}", fontsize=8.5)
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
