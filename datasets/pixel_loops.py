"""Loops over the pixels of a tile, compiled by Numba: one pass each, where NumPy would make ten. Images are uint8 RGB.

They are compiled when this file is first imported, and kept beside it (or in the user's cache folder) for the next
time. No sum is taken in another order than it is written in.
"""

from collections.abc import Callable

import numpy as np
from numba import njit, types

IMAGE = types.Array(types.uint8, 3, "C", readonly=True)
RANKS = types.Array(types.uint16, 2, "C", readonly=True)
COUNTS, NUMBERS = types.int64[::1], types.Array(types.float64, 1, "C", readonly=True)
MASK = types.boolean[:, ::1]


def _compiled(*arguments: types.Type) -> Callable[[Callable], Callable]:
    def compile_now(function: Callable) -> Callable:
        try:
            return njit(arguments, cache=True)(function)
        except RuntimeError:  # no folder to keep it in
            return njit(arguments)(function)

    return compile_now


@_compiled(IMAGE, RANKS, types.int64)
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


@_compiled(COUNTS, NUMBERS)
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


@_compiled(COUNTS, NUMBERS, NUMBERS)
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


@_compiled(IMAGE, RANKS, types.int64, COUNTS, types.int64)
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


@_compiled(MASK, types.int64)
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
