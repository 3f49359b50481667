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

from datasets.pixel_loops import count_pixels, grown, histogram_of, otsu_bin, pixels_above

LOWEST = 50  # all channels of tissue are above it
TIMES = 3  # dilations, and erosions
SEED = 5  # of the order in which cells are tried
POWER = 20  # magnification at which a patch has its nominal side; also taken where a file states none
LOW_CONTRAST = 0.1  # of full scale between percentiles 1 and 99; scikit-image's 0.05 is a share of -1 to 1
BINS = 256  # of the saturations' histogram
BYTES = np.arange(256.0)
STRIP_PIXELS = 1 << 22  # of a level that are read at a time


class Counts:
    """What the thresholds of an image depend on: its `values` (4, 256) in red, green, blue, grey, and `ranks` (n,)."""

    def __init__(self, image: np.ndarray) -> None:
        """Count the pixels of an image; a rank is the place of its saturation among all that there are."""
        saturations, ranks = _saturations()
        self.values, self.ranks = count_pixels(image, ranks, len(saturations))

    def add(self, more: "Counts") -> None:
        """Add what another one has counted."""
        self.values += more.values
        self.ranks += more.ranks

    def surely_high_contrast(self) -> bool:
        """Return whether percentiles 1 and 99 of grey are far enough apart, whatever it is within its error."""
        beyond = (int(self.ranks.sum()) - 1) // 100 + 2  # so many pixels beyond a value put the percentile there
        low, high = (int(np.searchsorted(np.cumsum(grey), beyond)) for grey in (self.values[3], self.values[3, ::-1]))
        return 255 - high - low >= LOW_CONTRAST * 255 + 2.5


class TissueRule:
    """The thresholds of counted pixels: `channels` (3,), and `rank`, the first that is above the saturation's."""

    def __init__(self, counted: Counts) -> None:
        saturations = _saturations()[0]
        present = np.flatnonzero(counted.ranks)
        low, high = saturations[present[0]], saturations[present[-1]]
        edges = np.linspace(low, high, BINS + 1)
        found = otsu_bin(histogram_of(counted.ranks, saturations, edges), (edges[:-1] + edges[1:]) / 2)
        threshold = (edges[found] + edges[found + 1]) / 2 if low < high else low
        self.rank = int(np.searchsorted(saturations, threshold, side="right"))
        self.channels = np.array([otsu_bin(values, BYTES) for values in counted.values[:3]])

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Return the tissue (H, W) bool of an image."""
        return pixels_above(image, _saturations()[1], self.rank, self.channels, LOWEST)


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """Return the tissue (H, W) bool of an image by its own thresholds."""
    return TissueRule(Counts(image)).mask(image)


def closed(mask: np.ndarray) -> np.ndarray:
    """Return a mask dilated and eroded TIMES with a cross; outside there is none, so that edges are eroded too."""
    outside = np.pad(~grown(mask, TIMES), TIMES, constant_values=True)
    return ~grown(outside, TIMES)[TIMES:-TIMES, TIMES:-TIMES]


def judge(patch: np.ndarray) -> tuple[float, bool]:
    """Return the share of a patch that its dilated tissue covers, and whether its contrast is low.

    Where the counts leave open whether the contrast is low, scikit-image decides.
    """
    counted = Counts(patch)
    mask = grown(TissueRule(counted).mask(patch), TIMES)
    return np.count_nonzero(mask) / mask.size, not counted.surely_high_contrast() and _is_low_contrast(patch)


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
        yield 0, closed(tissue_mask(read(0, height)))
        return
    counted = Counts(read(0, strip))
    for first in range(strip, height, strip):
        counted.add(Counts(read(first, min(strip, height - first))))
    rule = TissueRule(counted)
    for first in range(0, height, strip):
        last = min(first + strip, height)
        top, bottom = max(0, first - 2 * TIMES), min(height, last + 2 * TIMES)  # what a dilation and an erosion see
        mask = closed(rule.mask(read(top, bottom - top)))
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
    """Return the saturations that bytes can have, sorted, and the rank (256, 256) among them by highest and lowest.

    As scikit-image's rgb2hsv has them, to the last bit.
    """
    scaled = np.arange(256) * (1.0 / 255)
    high, low = scaled[:, None], scaled[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        values, ranks = np.unique(np.where(high > low, (high - low) / high, 0.0), return_inverse=True)
    return values, ranks.reshape(256, 256).astype(np.uint16)
