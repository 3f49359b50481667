"""A slide at a glance for the report: its overview, and beside it the mask with the tiles that were taken."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.files import atomic_path

SIDE = 220  # pixels: at most so high and so wide a half
GLASS, TISSUE, TAKEN = (255, 255, 255), (188, 222, 196), (30, 60, 220)


def write_thumbnail(
    path: str | Path, overview: np.ndarray, mask: np.ndarray, boxes: Iterable[tuple[float, float, float]]
) -> None:
    """Write a small JPEG: the overview, uint8 RGB (H, W, 3), and its tissue (H, W) bool in green with tiles in blue.

    `boxes`: left, top and side of each tile, in pixels of the overview.
    """
    height, width = mask.shape
    zoom = SIDE / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    colours = np.array([GLASS, TISSUE], np.uint8)[mask.astype(np.uint8)]
    picture = Image.new("RGB", (2 * size[0] + 4, size[1]), GLASS)
    picture.paste(Image.fromarray(overview).resize(size, Image.Resampling.BOX), (0, 0))
    picture.paste(Image.fromarray(colours).resize(size, Image.Resampling.BOX), (size[0] + 4, 0))
    draw = ImageDraw.Draw(picture)
    for left, top, side in boxes:
        x, y = size[0] + 4 + left * zoom, top * zoom
        draw.rectangle((x, y, max(x, x + side * zoom - 1), max(y, y + side * zoom - 1)), fill=TAKEN)
    with atomic_path(path, synced=False) as partial:
        picture.save(partial, "JPEG", quality=80)
