"""Tiles without their colour, and colour without the tile: what stain alone can win."""

import numpy as np

from common.errors import InputError

WEIGHTS = np.array([19595, 38470, 7471], dtype=np.uint32)  # of R, G, B over 65536: ITU-R BT.601 luma


def greyscale(tiles: np.ndarray) -> np.ndarray:
    """Return tiles (n, H, W, 3) uint8 with R = G = B = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), the same shape."""
    grey = np.empty_like(_checked(tiles))
    for k, tile in enumerate(tiles):
        grey[k] = ((tile @ WEIGHTS + 32768) >> 16)[..., None]
    return grey


def colour_histogram(tiles: np.ndarray, bins: int = 8) -> np.ndarray:
    """Return the histograms of R, G and B of each tile (n, H, W, 3) uint8 -> (n, 3 * bins) float32; a row sums to 1.

    `bins` equal bins over 0..255 per channel, R first. Per channel, not joint: most of bins^3 cells are nearly empty in
    stained tissue, and once z-scored over patients they would weigh as much as the others.
    """
    if not 1 <= bins <= 256:
        raise InputError(f"colour histogram: {bins} bins; expected 1 to 256")
    histograms = np.empty((len(_checked(tiles)), 3 * bins), dtype=np.float32)
    for k, tile in enumerate(tiles):
        channel = (tile.astype(np.int64) * bins) // 256 + bins * np.arange(3)
        histograms[k] = np.bincount(channel.ravel(), minlength=3 * bins) / channel.size
    return histograms


def _checked(tiles: np.ndarray) -> np.ndarray:
    if tiles.ndim != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
        raise InputError(f"tiles: expected (n, H, W, 3) uint8, found {tiles.dtype} of shape {tiles.shape}")
    return tiles
