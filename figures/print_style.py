"""How the paper's figures look in print: a journal's column widths, small type, thin lines; files without a date."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import atomic_path
from figures.plots import RC, settled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM = 1 / 25.4  # inches
COLUMN, PAGE = 85 * MM, 174 * MM  # one column, and both; Cell Press's figure guidelines
DPI = 300
MARKERS = "os^Dv<>P"
INK, PALE = "#1d2328", "#d5dade"
PRINT = RC | {
    "font.size": 6.5,
    "axes.titlesize": 7,
    "axes.labelsize": 6.5,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "lines.linewidth": 0.9,
    "lines.markersize": 3,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    "pdf.fonttype": 42,  # whole TrueType fonts: text that stays text
    "savefig.dpi": DPI,
}


def printed(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Draw under the style of print, without touching the process's."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(PRINT):
            return draw(*args, **kwargs)

    return wrapper


def page(width: float, height_mm: float, layout: str = "constrained") -> "Figure":
    """Return an empty figure, `width` inches wide; `layout` "none": places are given by hand."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height_mm * MM), layout=layout)


def letters(axes: Sequence["Axes"]) -> None:
    """Put a, b, c... above the upper left corner of each panel."""
    for letter, ax in zip("abcdefghijklmnop", axes, strict=False):
        ax.annotate(
            letter,
            (0, 1),
            xytext=(-16, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8.5,
            fontweight="bold",
        )


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write <stem>.pdf and <stem>.png (300 dpi) and return both; equal figures give equal bytes."""
    import matplotlib

    dateless = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    paths = []
    with matplotlib.rc_context(PRINT):
        settled(figure, DPI)
    for kind, metadata in dateless.items():
        path = stem.with_name(f"{stem.name}.{kind}")
        with matplotlib.rc_context(PRINT | {"figure.constrained_layout.use": False}), atomic_path(path) as partial:
            figure.savefig(partial, format=kind, dpi=DPI, metadata=metadata)
        paths.append(path)
    return paths
