"""Plots: data in, a matplotlib Figure out. No files, no state, no pyplot; colours that the colour-blind tell apart."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design, 2008), yellow left out: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#8a949c"
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#5b6670",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
}


def _styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Draw under our style, without touching the process's."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


def _axes(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def settled(figure: "Figure", dpi: int) -> "Figure":
    """Lay the figure out now, and fix its axes' places, rounded; return it.

    The layout's solver goes through its terms in another order in each process: the last digits of a place differ, and
    at times a pixel with them.
    """
    if figure.get_layout_engine() is not None:
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for ax in figure.axes:
            ax.set_position([round(float(x), 6) for x in ax.get_position(original=True).bounds])  # of the figure's side
    return figure


def colour_of(names: Sequence[str]) -> dict[str, str]:
    """Return one colour per distinct name, in sorted order, so that a tissue keeps its colour on every plot."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(sorted(set(names)))}


@_styled
def tile_rows(
    rows: Sequence[tuple[str, np.ndarray]], tile_inches: float = 0.62, per_block: int = 0, titles: Sequence[str] = ()
) -> "Figure":
    """Rows of tiles with their names to the left; a thin gap after every `per_block` tiles, `titles` over the blocks.

    rows: (name, tiles uint8 (n, H, W, 3)); rows may differ in n and in H. An empty array leaves its row blank.
    """
    from matplotlib.figure import Figure

    most = max(len(tiles) for _, tiles in rows)
    gaps = (most - 1) // per_block if per_block else 0
    label = 0.2 + 0.068 * max(len(line) for name, _ in rows for line in name.split("\n"))  # inches
    step, gap = tile_inches + 0.03, 0.09
    top = 0.22 if titles else 0.0
    width, height = label + most * step + gaps * gap, len(rows) * step + 0.02 + top
    figure = Figure(figsize=(width, height), layout="none")
    for b, title in enumerate(titles):
        left = label + b * (per_block * step + gap)
        figure.text(left / width, 1 - 0.15 / height, title, fontsize=8.5, color="#1d2328", va="baseline")
    axes = figure.add_axes(
        (0, 0, 1, 1)
    )  # in inches from the lower left; one for all tiles is far quicker than one each
    for r, (name, tiles) in enumerate(rows):
        bottom = height - (r + 1) * step - top
        middle = (bottom + tile_inches / 2) / height
        figure.text(
            (label - 0.1) / width,
            middle,
            name,
            ha="right",
            va="center",
            fontsize=8.5,
            color="#1d2328",
            linespacing=1.25,
        )
        for k, tile in enumerate(tiles):
            left = label + k * step + (k // per_block * gap if per_block else 0)
            axes.imshow(
                tile, extent=(left, left + tile_inches, bottom, bottom + tile_inches), interpolation="antialiased"
            )
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure


@_styled
def curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], x_label: str) -> "Figure":
    """One panel per name, one line per series (x (n,), y (n,)); a dashed line where the series' name holds "val"."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _axes(3.6 * columns, 2.5 * lines, lines, columns)
    for ax, (name, series) in zip(axes, panels.items(), strict=False):
        for k, (label, (x, y)) in enumerate(series.items()):
            style = "--" if "val" in label else "-"
            marker = "o" if len(x) < 12 else ""
            ax.plot(x, y, style, marker=marker, ms=3, color=COLOURS[k % len(COLOURS)], lw=1.4, label=label)
        ax.set_title(name)
        ax.set_xlabel(x_label)
        ax.legend()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


@_styled
def latent_map(points: np.ndarray, tissue: Sequence[str], kind: Sequence[str], held_out: np.ndarray) -> "Figure":
    """A map of profiles, one panel per kind over the real ones in grey; held-out donors have a black ring.

    points: (n, 2) coordinates; kind: "real", "reconstructed" or "generated" per point; held_out: (n,) bool.
    """
    tissue, kind = np.asarray(tissue), np.asarray(kind)
    kinds = [k for k in ("real", "reconstructed", "generated") if (kind == k).any()]
    figure, axes = _axes(3.6 * len(kinds), 3.5, 1, len(kinds))
    colours = colour_of(list(tissue))
    for ax, name in zip(axes, kinds, strict=True):
        if name != "real":
            ax.scatter(*points[kind == "real"].T, s=9, color="#d5dade", lw=0, label="real")
        for which, colour in colours.items():
            here = (kind == name) & (tissue == which)
            ax.scatter(*points[here & ~held_out].T, s=13, color=colour, lw=0, alpha=0.85, label=which)
            ax.scatter(*points[here & held_out].T, s=17, color=colour, lw=0.9, edgecolor="black")
        if ((kind == name) & held_out).any():
            ax.scatter([], [], s=17, color="white", lw=0.9, edgecolor="black", label="held-out donor")
        ax.set_title(f"{name} (n = {int((kind == name).sum())})")
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        ax.legend(loc="best", handletextpad=0.2)
        ax.set(xlim=_padded(points[:, 0]), ylim=_padded(points[:, 1]))
    return figure


@_styled
def harmonised(
    cloud: Mapping[str, np.ndarray],
    before: np.ndarray,
    after: np.ndarray,
    explained: Sequence[float],
    distances: Mapping[str, tuple[Mapping[str, np.ndarray], float]],
    title: str,
) -> "Figure":
    """Profiles before and after they were harmonised: on the map of the training cloud, and by their distances from it.

    cloud: tissue -> (n, 2) training profiles; before, after: (m, 2). All in the first two principal components of the
    standardised latent, which hold the shares `explained` of its variance. distances: the kind's title -> (held-out
    donors', before and after by name, (k,) each, and the limit beyond which a profile is called far).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 4.4))
    left, *right = figure.subplots(1, 1 + len(distances), width_ratios=[1.5] + [1] * len(distances))
    looks = {"before": ("^", COLOURS[1]), "after": ("o", COLOURS[0])}
    for (tissue, points), marker in zip(cloud.items(), "osDvP" * len(cloud), strict=False):
        label = f"training donors, {tissue} (n = {len(points)})"
        left.scatter(*points.T, s=12, marker=marker, color="#b9c0c6", lw=0, label=label)
    for pair in zip(before, after, strict=True):
        left.plot(*np.transpose(pair), color="#5b6670", lw=0.6, zorder=1)
    for (name, (marker, colour)), points in zip(looks.items(), (before, after), strict=True):
        style = {"s": 28, "marker": marker, "color": colour, "edgecolor": "white", "lw": 0.5}
        left.scatter(*points.T, label=f"{name} (n = {len(points)})", **style)
    left.set(xlabel=f"principal component 1 ({explained[0]:.0%} of the variance)")
    left.set(ylabel=f"principal component 2 ({explained[1]:.0%})")
    left.set_title(title)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, handletextpad=0.1, columnspacing=1.0)

    sideways = np.random.default_rng(0)  # so that points do not hide one another
    for ax, (kind, (groups, limit)) in zip(right, distances.items(), strict=True):
        for k, (name, values) in enumerate(groups.items()):
            marker, colour = looks.get(name, ("o", "#b9c0c6"))
            beside = k + sideways.uniform(-0.2, 0.2, len(values))
            ax.scatter(beside, values, s=24, marker=marker, color=colour, edgecolor="white", lw=0.4)
            ax.plot([k - 0.3, k + 0.3], [np.median(values)] * 2, color="black", lw=1.5)
        ax.axhline(limit, color=COLOURS[-1], lw=0.9, ls="--")
        ax.annotate("far", (0.99, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        ax.set_xticks(range(len(groups)), [f"{name}\n(n = {len(values)})" for name, values in groups.items()])
        highest = max(limit, *(values.max() for values in groups.values()))
        ax.set(xlim=(-0.6, len(groups) - 0.4), ylim=(0, 1.08 * highest))
        ax.set_title(kind)
    right[0].set_ylabel("times the held-out donors' mean")
    return figure


@_styled
def shift_curve(shifts: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> "Figure":
    """The share of moved profiles that a classifier calls the target, along alpha, with its interval.

    shifts: "a to b" -> (alpha, share, low, high), each (k,), shares in [0, 1].
    """
    figure, (ax,) = _axes(5.2, 3.0)
    for k, (name, (alpha, share, low, high)) in enumerate(shifts.items()):
        marker = "os^Dv"[k % 5]
        ax.fill_between(alpha, low, high, color=COLOURS[k % len(COLOURS)], alpha=0.15, lw=0)
        ax.plot(alpha, share, "-", marker=marker, ms=4, color=COLOURS[k % len(COLOURS)], lw=1.5, label=name)
    ax.axhline(0.5, color=GREY, lw=0.8, ls=":")
    ax.set(xlabel="alpha (0: unmoved, 1: the whole shift)", ylabel="share called the target", ylim=(-0.04, 1.04))
    ax.legend(loc="best")
    return figure


@_styled
def scatter_panels(panels: Sequence[tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]]) -> "Figure":
    """Generated against real, one point per patient; one panel per property, one marker per series, r and n in it.

    panels: (title, series name -> (real (n,), generated (n,))). The first series is filled and has its fitted line.
    """
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _axes(2.75 * columns, 2.75 * lines, lines, columns)
    for ax, (title, series) in zip(axes, panels, strict=False):
        for k, (name, (x, y)) in enumerate(series.items()):
            filled = {"color": COLOURS[0], "lw": 0} if k == 0 else {"facecolor": "none", "edgecolor": COLOURS[k]}
            r = f"{correlation(x, y):.2f}".replace("-0.00", "0.00").replace("-", "−").replace("nan", "–")
            label = f"{name}: r = {r}, n = {len(x)}"
            ax.scatter(x, y, s=16 if k == 0 else 14, marker="os^"[k % 3], label=label, **filled)
            if k == 0 and len(x) > 2 and np.ptp(x) > 0:
                slope, offset = np.polyfit(x, y, 1)
                ends = np.array([x.min(), x.max()])
                ax.plot(ends, slope * ends + offset, color=COLOURS[0], lw=1.1)
        across, up = (_padded(np.concatenate([pair[axis] for pair in series.values()])) for axis in (0, 1))
        ends = min(across[0], up[0]), max(across[1], up[1])
        ax.plot(ends, ends, color=GREY, lw=0.8, ls=":")
        ax.set(xlim=across, ylim=up)
        ax.set_title(title)
        ax.legend(loc="upper left", bbox_to_anchor=(-0.03, -0.16), fontsize=7.5, handletextpad=0.1, borderpad=0)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.supxlabel("mean of a patient's real tiles", fontsize=8.5)
    figure.supylabel("mean of the patient's generated tiles", fontsize=8.5)
    return figure


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's r, nan where either side does not vary or fewer than 3 points are given."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _padded(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = float(np.min(values)), float(np.max(values))
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad
