"""The figure of a shift in the latent space: before and after, the classifier along alpha, the genes of the sexes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from figures.plots import COLOURS, GREY
from figures.print_style import MARKERS, PAGE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE_OF = {COLOURS[0]: "#a9cbe3", COLOURS[1]: "#f0c3a3"}


@dataclass
class Moved:
    """Held-out profiles of one group moved to another. Points are (n, 2): along the shift, and across it."""

    others: dict[str, np.ndarray]  # group -> all its real profiles
    before: np.ndarray
    after: np.ndarray
    alphas: np.ndarray  # (k,)
    probability: np.ndarray  # (n, k), of the target
    names: list[str]
    donors: int
    n_from: int
    n_to: int
    right: int
    tested: int
    profiles: dict[str, np.ndarray]  # "before", "after" -> (n, genes), linear units


@printed
def shift_figure(
    moved: Mapping[tuple[str, str], Moved], genes: Mapping[str, Mapping[str, np.ndarray]], unit: str
) -> "Figure":
    """A column per direction: the map above, the probability below; then a panel per gene (group -> log2 values)."""
    groups = sorted({name for pair in moved for name in pair})
    colours = dict(zip(groups, COLOURS, strict=False))
    figure = page(PAGE, 54 + (58 if genes else 0))
    upper, *lower = figure.subfigures(2, 1, height_ratios=[54, 58]) if genes else [figure]
    axes = upper.subplots(1, 2 * len(moved), width_ratios=[1.25, 1] * len(moved), squeeze=False)[0]
    for k, ((a, b), m) in enumerate(moved.items()):
        _map(axes[2 * k], a, b, m, colours)
        _probability(axes[2 * k + 1], a, b, m, colours)
    letters([axes[k] for k in range(2 * len(moved))])
    if genes:
        _genes(lower[0], genes, colours, unit)
        letter = "abcdefgh"[2 * len(moved)]
        style = {"fontsize": 8.5, "fontweight": "bold", "xycoords": "axes fraction", "textcoords": "offset points"}
        lower[0].axes[0].annotate(letter, (0, 1), xytext=(-16, 5), **style)
    return figure


def _map(ax: "Axes", a: str, b: str, m: Moved, colours: Mapping[str, str]) -> None:
    for group, marker in ((a, MARKERS[0]), (b, MARKERS[1])):
        pale = PALE_OF.get(colours[group], "#d5dade")
        ax.scatter(*m.others[group].T, s=5, marker=marker, color=pale, lw=0, label=f"{group}, real".replace("_", " "))
    for pair in zip(m.before, m.after, strict=True):
        ax.plot(*np.transpose(pair), color=GREY, lw=0.3, zorder=1)
    ax.scatter(*m.before.T, s=9, marker=MARKERS[0], color=colours[a], lw=0, label="held out, before")
    edge = {"facecolor": "white", "edgecolor": colours[b], "lw": 0.7}
    ax.scatter(*m.after.T, s=10, marker=MARKERS[2], label="after", **edge)
    ax.set(xlabel="position along the shift", ylabel="first component across it")
    ax.set_title(f"{a} to {b}".replace("_", " "))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, borderpad=0)


def _probability(ax: "Axes", a: str, b: str, m: Moved, colours: Mapping[str, str]) -> None:
    low, first, middle, third, high = np.quantile(m.probability, [0, 0.25, 0.5, 0.75, 1], axis=0)
    ax.fill_between(m.alphas, low, high, color=colours[b], alpha=0.13, lw=0)
    ax.fill_between(m.alphas, first, third, color=colours[b], alpha=0.3, lw=0)
    ax.plot(m.alphas, middle, color=colours[b], marker="o", ms=2.2)
    ax.axhline(0.5, color=GREY, lw=0.6, ls=":")
    ax.axvline(1, color=GREY, lw=0.6, ls=":")
    ax.set(xlabel="alpha (1: the whole shift)", ylabel=f"probability of {b}".replace("_", " "), ylim=(-0.03, 1.03))
    ax.set(xlim=(m.alphas[0], m.alphas[-1]))


def _genes(
    figure: "Figure",
    genes: Mapping[str, Mapping[str, np.ndarray]],
    colours: Mapping[str, str],
    unit: str,
) -> None:
    columns = min(4, len(genes))
    axes = figure.subplots(-(-len(genes) // columns), columns, squeeze=False).ravel()
    for ax, (gene, values) in zip(axes, genes.items(), strict=False):
        for k, (name, x) in enumerate(values.items()):
            source, _, target = name.partition(" to ")
            colour, open_box = colours[target or source], bool(target)
            line = {"color": colour, "lw": 0.8}
            ax.boxplot(
                x,
                positions=[k],
                widths=0.6,
                patch_artist=True,
                boxprops={"facecolor": "white" if open_box else colour, "edgecolor": colour, "lw": 0.8},
                medianprops={"color": colour if open_box else "white", "lw": 1},
                whiskerprops=line,
                capprops=line,
                flierprops={"marker": ".", "ms": 2, "markerfacecolor": colour, "markeredgewidth": 0},
            )
        ax.set_xticks(range(len(values)), [name.replace(" to ", "\nto ") for name in values], fontsize=5.5)
        ax.set_title(gene, fontstyle="italic")
        ax.set_ylim(bottom=0)
    for ax in axes[len(genes) :]:
        ax.set_axis_off()
    for row in range(0, len(genes), columns):
        axes[row].set_ylabel(f"log2(1 + {unit})")
