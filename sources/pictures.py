"""Tiles as picture files: one PNG each, or many in one grid."""

from pathlib import Path

import numpy as np

from common.files import atomic_path
from datasets.tiles import encode_image

GAP = 2  # pixels of white between the tiles of a grid


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write a uint8 RGB image (H, W, 3) as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(encode_image(image, "png"))


def grid_of(images: np.ndarray, columns: int) -> np.ndarray:
    """Return tiles (n, H, W, 3) side by side, row by row, as one uint8 image; missing ones are white."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    page = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        page[top : top + height, left : left + width] = image
    return page
