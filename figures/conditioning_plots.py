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
    """For each direction (alphas (s,), measure -> (patients, s)) a row of panels, one per measure; bold: the mean."""
    names = list(next(iter(directions.values()))[1])
    figure, axes = _axes(1.75 * len(names), 1.5 * len(directions) + 0.4, len(directions), len(names))
    limits = {
        m: _padded(np.concatenate([v[m].ravel()[np.isfinite(v[m].ravel())] for _, v in directions.values()]))
        for m in names
    }
    for r, (direction, (alphas, values)) in enumerate(directions.items()):
        for k, name in enumerate(names):
            ax = axes[r * len(names) + k]
            own = direction == name
            for patient in values[name]:
                ax.plot(alphas, patient, color="#b9c3ca", lw=0.7)
            ax.plot(alphas, values[name].mean(0), "o-", ms=3, lw=1.6, color=COLOURS[1] if own else COLOURS[0])
            ax.set_ylim(limits[name])
            ax.tick_params(labelsize=6.5)
            if r == 0:
                ax.set_title(f"{name.replace('_', ' ')}\n{units[name]}", fontsize=7.5)
            if k == 0:
                ax.set_ylabel(direction.replace("_", " "), fontsize=7.5)
    figure.supxlabel("alpha", fontsize=8.5)
    return figure
