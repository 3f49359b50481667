"""The figure of the three networks, drawn from their stages."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from figures.plots import COLOURS
from figures.print_style import INK, MM, PAGE, page, printed
from figures.trace import Stage, totals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, GAP = 7.6, 2.4  # mm: a stage, and the arrow between two
TOP, BOTTOM = 15.0, 3.0
WIDTH, BETWEEN = 50.5, 10.0  # of a column, and between two


def count(n: int) -> str:
    """Return 1234567 as "1.23 M"."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} "


@printed
def architecture(
    networks: Mapping[str, Sequence[Stage]], inputs: Mapping[str, str], joints: Sequence[tuple[str, int, str, int, str]]
) -> "Figure":
    """One column per network, from its input (top) to its output; a box per stage with shape, parameters, FLOPs.

    joints: (network, stage's number, network, stage's number, words) for what goes from one network to the next; the
    number -1 is the input.
    """
    from matplotlib.patches import FancyBboxPatch

    most = max(map(len, networks.values())) + 1
    height = TOP + BOTTOM + most * ROW + (most - 1) * GAP
    figure = page(PAGE, height, "none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, PAGE / MM), ylim=(height, 0))  # millimetres, from the upper left
    ax.set_axis_off()
    sums = totals({name: list(stages) for name, stages in networks.items()})
    place = {}
    for k, (name, stages) in enumerate(networks.items()):
        left = 1 + k * (WIDTH + BETWEEN)
        parameters, flops = sums[name]
        ax.text(left, 5, name, fontsize=8, fontweight="bold", color=COLOURS[k], va="baseline")
        ax.text(left, 9, f"{count(parameters).strip()} parameters, {count(flops)}FLOP forward", fontsize=6, color=INK)
        for row in range(-1, len(stages)):
            top = TOP + (row + 1) * (ROW + GAP)
            place[name, row] = (left, top + ROW / 2)
            style = {"boxstyle": "round,pad=0,rounding_size=1", "lw": 0.6, "edgecolor": COLOURS[k]}
            face = COLOURS[k] + "14" if row >= 0 else "white"
            ax.add_patch(FancyBboxPatch((left, top), WIDTH, ROW, facecolor=face, **style))
            if row < 0:
                ax.text(left + WIDTH / 2, top + ROW / 2, inputs[name], ha="center", va="center", fontsize=6)
            else:
                stage = stages[row]
                shape = " x ".join(map(str, stage.shape))
                ax.text(left + 1.5, top + 2.6, stage.name, va="center", fontsize=5.8, color=INK)
                numbers = f"{count(stage.parameters).strip()}, {count(stage.flops)}FLOP"
                ax.text(left + 1.5, top + 5.4, shape, va="center", fontsize=5.8, fontweight="bold", color=INK)
                ax.text(left + WIDTH - 1.5, top + 5.4, numbers, va="center", ha="right", fontsize=5.4, color="#5b6670")
            if row >= 0 and not stages[row].beside:
                _arrow(ax, (left + WIDTH / 2, top - GAP), (left + WIDTH / 2, top), COLOURS[k])
    for source, a, target, b, words in joints:
        (x0, y0), (x1, y1) = place[source, a], place[target, b]
        start, end = ((x0 + WIDTH, y0), (x1, y1)) if x1 > x0 else ((x0, y0), (x1 + WIDTH, y1))
        middle = (start[0] + end[0]) / 2
        ax.plot([start[0], middle, middle], [start[1], start[1], end[1]], color=INK, lw=0.8)
        _arrow(ax, (middle, end[1]), end, INK)
        ax.text(middle - 0.6, (start[1] + end[1]) / 2, words, fontsize=6, rotation=90, ha="right", va="center")
    return figure


def _arrow(ax: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    from matplotlib.patches import FancyArrowPatch

    style = {"arrowstyle": "-|>", "mutation_scale": 5, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, **style))
