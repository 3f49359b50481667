"""The figure of the three networks, drawn from their stages."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from figures.plots import COLOURS
from figures.print_style import INK, MM, PAGE, page, printed
from figures.trace import Stage, totals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, GAP = 7.6, 2.4  # mm: a stage, and the arrow between two; two stages side by side are as far apart
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
    number -1 is the input. Of two that go into the next stage together, the first stands right.
    """
    from matplotlib.patches import FancyBboxPatch

    rows = {name: in_rows(stages) for name, stages in networks.items()}
    most = max(map(len, rows.values()))
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
        for r, row in enumerate(rows[name]):
            top, width = TOP + r * (ROW + GAP), (WIDTH + GAP) / len(row) - GAP
            for slot, number in enumerate(reversed(row)):
                x = left + slot * (width + GAP)
                place[name, number] = (x, x + width, top + ROW / 2)
                style = {"boxstyle": "round,pad=0,rounding_size=1", "lw": 0.6, "edgecolor": COLOURS[k]}
                face = COLOURS[k] + "14" if number >= 0 else "white"
                ax.add_patch(FancyBboxPatch((x, top), width, ROW, facecolor=face, **style))
                if number < 0:
                    ax.text(x + width / 2, top + ROW / 2, inputs[name], ha="center", va="center", fontsize=6)
                else:
                    _words(ax, stages[number], x, x + width, top)
            if r and not stages[row[0]].beside:
                for number in max(row, rows[name][r - 1], key=len):
                    middle = sum(place[name, number][:2]) / 2
                    _arrow(ax, (middle, top - GAP), (middle, top), COLOURS[k])
    for source, a, target, b, words in joints:
        (x0, x1, y0), (x2, x3, y1) = place[source, a], place[target, b]
        start, end = ((x1, y0), (x2, y1)) if x2 > x0 else ((x0, y0), (x3, y1))
        middle = (start[0] + end[0]) / 2
        ax.plot([start[0], middle, middle], [start[1], start[1], end[1]], color=INK, lw=0.8)
        _arrow(ax, (middle, end[1]), end, INK)
        ax.text(middle - 0.6, (start[1] + end[1]) / 2, words, fontsize=6, rotation=90, ha="right", va="center")
    return figure


def in_rows(stages: Sequence[Stage]) -> list[list[int]]:
    """Return the numbers of the stages by row, from the input (-1) on: a twin stands beside the one before it."""
    rows = [[-1]]
    for number, stage in enumerate(stages):
        if stage.twin:
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def _words(ax: "Axes", stage: Stage, left: float, right: float, top: float) -> None:
    """Write what a stage is into its box: name, shape, and, where it has weights, parameters and FLOPs."""
    shape, narrow = " x ".join(map(str, stage.shape)), right - left < WIDTH / 2
    ax.text(left + 1.5, top + 2.6, stage.name, va="center", fontsize=5.8, color=INK)
    x, y, side = (right - 1.5, 2.6, "right") if narrow else (left + 1.5, 5.4, "left")
    ax.text(x, top + y, shape, va="center", ha=side, fontsize=5.8, fontweight="bold", color=INK)
    if stage.parameters:
        numbers = f"{count(stage.parameters).strip()}, {count(stage.flops)}FLOP"
        ax.text(right - 1.5, top + 5.4, numbers, va="center", ha="right", fontsize=5.4, color="#5b6670")


def _arrow(ax: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    from matplotlib.patches import FancyArrowPatch

    style = {"arrowstyle": "-|>", "mutation_scale": 5, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, **style))
