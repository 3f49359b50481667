"""The published extractor's rules for tissue and for patches, stated anew: the same answers, in integer arithmetic.

Source: gevaertlab/RNA-GAN at 75dc998, src/preprocess/patch_gen_grid.py, run with scikit-image 0.26 and scipy 1.17.
A pixel is tissue where its saturation is above Otsu's threshold of all saturations, not all three channels are above
their own thresholds, and all three are above 50. On the slide's coarsest level this mask is dilated and eroded three
times, and a cell of the grid is tried where the mask is set at its corner. A patch is kept where the same rule, with
the patch's own thresholds, dilated three times, covers more than a fifth of it, and its contrast is not low.

Saturation depends on a pixel's highest and lowest channel alone, so that a pixel's is a number in a short sorted list:
counting, and comparing with a threshold, need no fractions. Arrays in, arrays out; images are uint8 RGB (H, W, 3).
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

LOWEST = 50  # all channels of tissue are above it
TIMES = 3  # dilations, and erosions
MIN_TISSUE = 0.2  # a patch has more than this share of tissue
SEED = 5  # of the order in which cells are tried
POWER = 20  # magnification at which a patch has its nominal side; also taken where a file states none
LOW_CONTRAST = 0.1  # of full scale between percentiles 1 and 99; scikit-image's 0.05 is a share of -1 to 1
STRIP_PIXELS = 1 << 22  # of a level that are read at a time


class Pixels:
    """An image taken apart: `planes` (3, H, W), the `lowest` of them (H, W), and the saturations as `ranks` (H, W)."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.planes = image, np.ascontiguousarray(image.transpose(2, 0, 1))
        red, green, blue = self.planes
        self.lowest = np.minimum(np.minimum(red, green), blue)
        pairs = np.maximum(np.maximum(red, green), blue).astype(np.uint16)
        pairs <<= 8
        pairs |= self.lowest
        self.ranks = _saturations()[1].take(pairs)


class Counts:
    """Counts of each channel's values (3, 256), and of the ranks of saturations."""

    def __init__(self, pixels: Pixels) -> None:
        """Count the pixels of an image."""
        self.channels = np.reshape(Image.fromarray(pixels.image).histogram(), (3, 256))
        self.ranks = np.bincount(pixels.ranks.ravel(), minlength=len(_saturations()[0]))

    def add(self, more: "Counts") -> None:
        """Add what another one has counted."""
        self.channels += more.channels
        self.ranks += more.ranks


class TissueRule:
    """The thresholds of counted pixels: `channels` (3,), and `rank`, the first that is above the saturation's."""

    def __init__(self, counted: Counts) -> None:
        saturations = _saturations()[0]
        present = np.flatnonzero(counted.ranks > 0)
        low, high = saturations[present[0]], saturations[present[-1]]
        counts, centres = np.empty((4, 256)), np.empty((4, 256))
        counts[:3], centres[:3] = counted.channels, np.arange(256)
        edges = np.linspace(low, high, 257)  # as NumPy's histogram: a bin has its lower edge, the last one both
        starts = np.searchsorted(saturations, edges[:-1])
        ends = np.append(starts[1:], present[-1] + 1)
        counts[3] = np.where(starts < ends, np.add.reduceat(counted.ranks, starts), 0)
        centres[3] = (edges[:-1] + edges[1:]) / 2
        thresholds = otsu_thresholds(counts, centres)
        self.channels = thresholds[:3].astype(np.uint8)
        self.rank = int(np.searchsorted(saturations, thresholds[3] if low < high else low, side="right"))

    def mask(self, pixels: Pixels) -> np.ndarray:
        """Return the tissue (H, W) bool of an image."""
        background = pixels.planes[0] > self.channels[0]
        background &= pixels.planes[1] > self.channels[1]
        background &= pixels.planes[2] > self.channels[2]
        return (pixels.ranks >= self.rank) & (pixels.lowest > LOWEST) & ~background


def otsu_thresholds(counts: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the thresholds (n,) of n histograms (n, bins) whose bins lie at `centres`; Otsu 1979.

    In scikit-image's precision (counts are float32) and with its choice of the first best bin. Where only one bin is
    filled, that bin's centre.
    """
    counts = counts.astype(np.float32)
    moments = counts * centres
    below, above = np.cumsum(counts, 1), np.cumsum(counts[:, ::-1], 1)[:, ::-1]
    mean_below = np.cumsum(moments, 1) / np.maximum(below, 1)
    mean_above = np.cumsum(moments[:, ::-1], 1)[:, ::-1] / np.maximum(above, 1)
    between = below[:, :-1] * above[:, 1:] * (mean_below[:, :-1] - mean_above[:, 1:]) ** 2
    best = between.argmax(1)
    best = np.where(between.max(1) > 0, best, counts.argmax(1))
    return np.take_along_axis(centres, best[:, None], 1)[:, 0]


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """Return the tissue (H, W) bool of an image by its own thresholds."""
    pixels = Pixels(image)
    return TissueRule(Counts(pixels)).mask(pixels)


def grown(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) dilated TIMES with a cross; outside there is none."""
    for _ in range(TIMES):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


def shrunk(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) eroded TIMES with a cross; outside there is none, so that edges are eroded too."""
    outside = np.pad(~mask, TIMES, constant_values=True)
    return ~grown(outside)[TIMES:-TIMES, TIMES:-TIMES]


def judge(patch: np.ndarray) -> tuple[float, bool]:
    """Return the share of a patch that its dilated tissue covers, and whether its contrast is low."""
    pixels = Pixels(patch)
    mask = grown(TissueRule(Counts(pixels)).mask(pixels))
    return np.count_nonzero(mask) / mask.size, not surely_high_contrast(pixels) and _is_low_contrast(patch)


def surely_high_contrast(pixels: Pixels) -> bool:
    """Return whether a quarter of the pixels already says that the contrast of all is not low, as it mostly does."""
    red, green, blue = pixels.planes[:, ::2, ::2].astype(np.uint16)
    grey = (54 * red + 183 * green + 18 * blue) >> 8  # at most 2 below the true value
    counts = np.bincount(grey.ravel(), minlength=256)
    enough = (pixels.lowest.size - 1) // 100 + 2  # so many pixels beyond a value put the percentile there
    low, high = np.cumsum(counts) >= enough, np.cumsum(counts[::-1]) >= enough
    return bool(low[-1]) and 255 - high.argmax() - low.argmax() >= LOW_CONTRAST * 255 + 2.5


def _is_low_contrast(patch: np.ndarray) -> bool:
    from skimage.exposure import is_low_contrast

    return bool(is_low_contrast(patch))


def slide_mask(
    read: Callable[[int, int], np.ndarray], size: tuple[int, int], strip: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, mask (rows, width) bool) of a level of `size` (width, height), strip by strip.

    `read(first row, rows)` returns that part of the level; it is read twice where the level is more than one strip of
    `strip` rows, so that memory does not grow with the level.
    """
    width, height = size
    strip = strip or max(1, STRIP_PIXELS // width)
    if strip >= height:
        yield 0, shrunk(grown(tissue_mask(read(0, height))))
        return
    counted = Counts(Pixels(read(0, strip)))
    for first in range(strip, height, strip):
        counted.add(Counts(Pixels(read(first, min(strip, height - first)))))
    rule = TissueRule(counted)
    for first in range(0, height, strip):
        last = min(first + strip, height)
        top, bottom = max(0, first - 2 * TIMES), min(height, last + 2 * TIMES)  # what a dilation and an erosion see
        mask = shrunk(grown(rule.mask(Pixels(read(top, bottom - top)))))
        yield first, mask[first - top : last - top]


def cells(size: tuple[int, int], side: int) -> np.ndarray:
    """Return the corners (n, 2) x, y of a grid over `size` (width, height), also beyond its edges, in the order tried.

    The order is NumPy's shuffle of the columns one after another, seeded.
    """
    x, y = np.arange(0, size[0], side), np.arange(0, size[1], side)
    corners = np.stack([np.repeat(x, len(y)), np.tile(y, len(x))], axis=1)
    order = np.arange(len(corners))
    np.random.RandomState(SEED).shuffle(order)
    return corners[order]


@lru_cache(maxsize=1)
def _saturations() -> tuple[np.ndarray, np.ndarray]:
    """Return the saturations that bytes can have, sorted, and which of them each pair has: 256 * highest + lowest.

    As scikit-image's rgb2hsv has them, to the last bit.
    """
    scaled = np.arange(256) * (1.0 / 255)
    high, low = np.repeat(scaled, 256), np.tile(scaled, 256)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.unique(np.where(high > low, (high - low) / high, 0.0), return_inverse=True)
