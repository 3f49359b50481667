"""The figure of quality in the course of training."""

from typing import TYPE_CHECKING

import pandas as pd

from figures.plots import COLOURS, GREY
from figures.print_style import COLUMN, MARKERS, PAGE, letters, page, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {"wgan": (0, "-"), "wgangp": (4, "--"), "wganvae": (1, "-"), "wgangpvae": (5, "--"), "rpganvae": (2, "-")}


@printed
def epochs_figure(table: pd.DataFrame) -> "Figure":
    """A panel per tissue and extractor, a line per run: kid against images; columns images, kid, run, loss, label..."""
    panels = list(table.groupby(["tissue", "extractor", "weights"], sort=True))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = page(PAGE if columns > 1 else COLUMN, 58 * rows + 12)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    losses = list(dict.fromkeys([*LOOKS, *sorted(table["loss"])]))
    handles = {}
    for ax, ((tissue, extractor, _), points) in zip(axes, panels, strict=False):
        for _, run in points.groupby("run", sort=True):
            loss = run["loss"].iloc[0]
            number, dashes = LOOKS.get(loss, (losses.index(loss), ":"))
            run = run.sort_values("images")
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[losses.index(loss) % len(MARKERS)]}
            (line,) = ax.plot(run["images"] / 1000, run["kid"], dashes, ms=2.6, **style)
            handles.setdefault(run["label"].iloc[0], line)
        ax.axhline(0, color=GREY, lw=0.6, ls=":")
        ax.set(xlabel="real tiles shown (thousands)", ylabel="KID from real tiles", xlim=(0, None))
        several = sum(t == tissue for (t, *_), _ in panels) > 1
        ax.set_title(tissue.replace("_", " ") + (f", {extractor}" if several else ""))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    order = sorted(handles, key=lambda label: losses.index(next(table["loss"][table["label"] == label].items())[1]))
    figure.legend([handles[k] for k in order], order, loc="outside lower center", ncols=2 if columns > 1 else 1)
    if len(panels) > 1:
        letters(axes[: len(panels)])
    return figure
