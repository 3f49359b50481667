"""Loops over the pixels of a tile, compiled by Numba: one pass each, where NumPy would make ten. Images are uint8 RGB.

No sum is taken in another order than it is written in.
"""

import numpy as np
from numba import types

from common.compiled import compiled

IMAGE = types.Array(types.uint8, 3, "C", readonly=True)
RANKS = types.Array(types.uint16, 2, "C", readonly=True)
COUNTS, NUMBERS = types.int64[::1], types.Array(types.float64, 1, "C", readonly=True)
TABLES = types.Array(types.float32, 2, "C", readonly=True)
MASK = types.boolean[:, ::1]


@compiled(IMAGE, RANKS, types.int64)
def count_pixels(image: np.ndarray, ranks: np.ndarray, n_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts (4, 256) of red, green, blue and grey, and (n_ranks,) of the pixels' ranks.

    A pixel's rank is `ranks` (256, 256) of its highest and lowest channel. Grey is at most 2 below 0.2125 R + 0.7154 G
    + 0.0721 B.
    """
    values = np.zeros((4, 256), np.int64)
    seen = np.zeros(n_ranks, np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            values[0, red] += 1
            values[1, green] += 1
            values[2, blue] += 1
            values[3, (54 * int(red) + 183 * int(green) + 18 * int(blue)) >> 8] += 1
            seen[ranks[max(red, green, blue), min(red, green, blue)]] += 1
    return values, seen


@compiled(COUNTS, NUMBERS)
def otsu_bin(counts: np.ndarray, centres: np.ndarray) -> int:
    """Return the bin of Otsu's threshold, the first best one; Otsu 1979. Where only one bin is filled, that one.

    In scikit-image's precision: counts and their products are float32, moments float64.
    """
    bins = len(counts)
    above, mean_above = np.zeros(bins, np.float32), np.zeros(bins, np.float64)
    weight, moment = np.float32(0), 0.0
    for i in range(bins - 1, -1, -1):
        weight += np.float32(counts[i])
        moment += np.float32(counts[i]) * centres[i]
        above[i] = weight
        mean_above[i] = moment / max(weight, np.float32(1))
    best, most = int(np.argmax(counts)), 0.0
    weight, moment = np.float32(0), 0.0
    for i in range(bins - 1):
        weight += np.float32(counts[i])
        moment += np.float32(counts[i]) * centres[i]
        difference = moment / max(weight, np.float32(1)) - mean_above[i + 1]
        between = (weight * above[i + 1]) * (difference * difference)
        if between > most:
            best, most = i, between
    return best


@compiled(COUNTS, NUMBERS, NUMBERS)
def histogram_of(counts: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how many of `values`, sorted and counted, are in each bin; a bin has its lower edge, the last one both."""
    out = np.zeros(len(edges) - 1, np.int64)
    place = 0
    for i in range(len(values)):
        if counts[i]:
            while place < len(out) - 1 and values[i] >= edges[place + 1]:
                place += 1
            out[place] += counts[i]
    return out


@compiled(IMAGE, RANKS, types.int64, COUNTS, types.int64)
def pixels_above(image: np.ndarray, ranks: np.ndarray, rank: int, background: np.ndarray, lowest: int) -> np.ndarray:
    """Return (H, W) bool: rank at least `rank`, all channels above `lowest`, not all above `background` (3,)."""
    out = np.empty(image.shape[:2], np.bool_)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            low = min(red, green, blue)
            bright = red > background[0] and green > background[1] and blue > background[2]
            out[y, x] = low > lowest and not bright and ranks[max(red, green, blue), low] >= rank
    return out


@compiled(MASK, types.int64)
def grown(mask: np.ndarray, times: int) -> np.ndarray:
    """Return a mask (H, W) bool dilated `times` with a cross; outside there is none."""
    height, width = mask.shape
    now = np.zeros((height + 2, width + 2), np.bool_)
    now[1:-1, 1:-1] = mask
    new = np.zeros_like(now)
    for _ in range(times):
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                new[y, x] = now[y, x] | now[y - 1, x] | now[y + 1, x] | now[y, x - 1] | now[y, x + 1]
        now, new = new, now
    return now[1:-1, 1:-1].copy()


@compiled(IMAGE, TABLES, types.int64, types.float32, types.float32, types.float32)
def stained_and_pen_pixels(
    image: np.ndarray, densities: np.ndarray, black: int, stain: float, pen_stain: float, pen_red_over_green: float
) -> tuple[int, int]:
    """Return how many of every second pixel each way are stained, and how many have a pen's colour.

    `densities` (3, 256) float32: optical density of each channel's values. See datasets/quality.py for the bounds.
    """
    stained, pen = 0, 0
    for y in range(0, image.shape[0], 2):
        for x in range(0, image.shape[1], 2):
            if max(image[y, x, 0], image[y, x, 1], image[y, x, 2]) < black:
                continue
            red, green, blue = (
                densities[0, image[y, x, 0]],
                densities[1, image[y, x, 1]],
                densities[2, image[y, x, 2]],
            )
            spread = max(red, green, blue) - min(red, green, blue)
            stained += spread > stain
            pen += spread > pen_stain and red - green > pen_red_over_green
    return stained, pen


@compiled(types.float32[:, ::1])
def _energy(image: np.ndarray) -> float:
    """Return the sum of the squared differences of neighbours, summed along columns first."""
    height, width = image.shape
    sums = np.zeros(width, np.float32)
    for y in range(height - 1):
        for x in range(width - 1):
            below, beside = image[y + 1, x] - image[y, x], image[y, x + 1] - image[y, x]
            sums[x] += below * below + beside * beside
    return float(sums.sum())


@compiled(IMAGE, types.float32, types.float32)
def blur_energies(image: np.ndarray, edge: float, middle: float) -> tuple[float, float]:
    """Return the energy of the grey image's differences, smoothed by (edge, middle, edge), and after a 5 x 5 mean."""
    height, width = image.shape[:2]
    grey = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):  # as Pillow's "L"
            weighted = 19595 * int(image[y, x, 0]) + 38470 * int(image[y, x, 1]) + 7471 * int(image[y, x, 2])
            grey[y, x] = (weighted + 0x8000) >> 16
    down = np.empty((height - 2, width), np.float32)
    for y in range(height - 2):
        for x in range(width):
            down[y, x] = edge * (grey[y, x] + grey[y + 2, x]) + middle * grey[y + 1, x]
    smooth = np.empty((height - 2, width - 2), np.float32)
    for y in range(height - 2):
        for x in range(width - 2):
            smooth[y, x] = edge * (down[y, x] + down[y, x + 2]) + middle * down[y, x + 1]
    sums = np.empty((height - 6, width - 2), np.float32)
    for y in range(height - 6):
        for x in range(width - 2):
            sums[y, x] = smooth[y, x] + smooth[y + 1, x] + smooth[y + 2, x] + smooth[y + 3, x] + smooth[y + 4, x]
    again = np.empty((height - 6, width - 6), np.float32)
    for y in range(height - 6):
        for x in range(width - 6):
            total = sums[y, x] + sums[y, x + 1] + sums[y, x + 2] + sums[y, x + 3] + sums[y, x + 4]
            again[y, x] = total / np.float32(25)
    return _energy(smooth[2:-2, 2:-2].copy()), _energy(again)
