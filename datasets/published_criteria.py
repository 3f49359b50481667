"""The published extractor's rules for tissue and for patches, stated anew: the same answers, in integer arithmetic.

Source: gevaertlab/RNA-GAN at 75dc998, src/preprocess/patch_gen_grid.py, run with scikit-image 0.26 and scipy 1.17.
A pixel is tissue where its saturation is above Otsu's threshold of all saturations, not all three channels are above
their own thresholds, and all three are above 50. On the slide's coarsest level this mask is dilated and eroded three
times, and a cell of the grid is tried where the mask is set at its corner. A patch is kept where the same rule, with
the patch's own thresholds, dilated three times, covers more than a fifth of it, and its contrast is not low.

Saturation depends on a pixel's highest and lowest channel alone, so that its histogram is one of 65,536 pairs of
bytes. Arrays in, arrays out; images are uint8 RGB (H, W, 3).
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
STRIP_PIXELS = 1 << 24  # of a level that are read at a time


class Pixels:
    """An image taken apart: `planes` (3, H, W), and 256 times the highest channel plus the lowest, `pairs` (H, W)."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.planes = image, np.ascontiguousarray(image.transpose(2, 0, 1))
        red, green, blue = self.planes
        pairs = np.maximum(np.maximum(red, green), blue).astype(np.uint16)
        pairs <<= 8
        pairs |= np.minimum(np.minimum(red, green), blue)
        self.pairs = pairs.astype(np.intp)  # as what counts and looks up with them wants it


class Histogram:
    """Counts (256,) of each channel's values and (65536,) of the pairs of highest and lowest channel."""

    def __init__(self, pixels: Pixels) -> None:
        """Count the pixels of an image."""
        self.channels = np.reshape(Image.fromarray(pixels.image).histogram(), (3, 256))
        self.pairs = np.bincount(pixels.pairs.ravel(), minlength=65536)

    def add(self, more: "Histogram") -> None:
        """Add what another one has counted."""
        self.channels += more.channels
        self.pairs += more.pairs


class TissueRule:
    """The thresholds of counted pixels: `channels` (3,) and `saturation`; and which pixels they make tissue."""

    def __init__(self, seen: Histogram) -> None:
        all_saturations, bright = _pair_values()
        present = np.flatnonzero(seen.pairs > 0)
        saturations = all_saturations[present]
        low, high = saturations.min(), saturations.max()
        counts, centres = np.empty((4, 256)), np.empty((4, 256))
        counts[:3], centres[:3] = seen.channels, np.arange(256)
        counts[3], edges = np.histogram(saturations, 256, weights=seen.pairs[present])
        centres[3] = (edges[:-1] + edges[1:]) / 2
        thresholds = otsu_thresholds(counts, centres)
        self.channels = thresholds[:3].astype(np.uint8)
        self.saturation = thresholds[3] if low < high else low
        self._tissue = (all_saturations > self.saturation) & bright

    def mask(self, pixels: Pixels) -> np.ndarray:
        """Return the tissue (H, W) bool of an image."""
        background = pixels.planes[0] > self.channels[0]
        background &= pixels.planes[1] > self.channels[1]
        background &= pixels.planes[2] > self.channels[2]
        return self._tissue.take(pixels.pairs) & ~background


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
    return TissueRule(Histogram(pixels)).mask(pixels)


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
    for _ in range(TIMES):
        narrower = mask.copy()
        narrower[0], narrower[-1], narrower[:, 0], narrower[:, -1] = False, False, False, False
        narrower[1:] &= mask[:-1]
        narrower[:-1] &= mask[1:]
        narrower[:, 1:] &= mask[:, :-1]
        narrower[:, :-1] &= mask[:, 1:]
        mask = narrower
    return mask


def judge(patch: np.ndarray) -> tuple[float, bool]:
    """Return the share of a patch that its dilated tissue covers, and whether its contrast is low."""
    pixels = Pixels(patch)
    mask = grown(TissueRule(Histogram(pixels)).mask(pixels))
    return np.count_nonzero(mask) / mask.size, not _high_contrast(pixels) and _low_contrast(patch)


def _high_contrast(pixels: Pixels) -> bool:
    """Return whether a quarter of the pixels already says that the contrast of all is not low, as it mostly does."""
    red, green, blue = pixels.planes[:, ::2, ::2].astype(np.uint16)
    grey = (54 * red + 183 * green + 18 * blue) >> 8  # at most 2 below the true value
    counts = np.bincount(grey.ravel(), minlength=256)
    enough = (pixels.pairs.size - 1) // 100 + 2  # so many pixels beyond a value put the percentile there
    low, high = np.cumsum(counts) >= enough, np.cumsum(counts[::-1]) >= enough
    return bool(low[-1]) and 255 - high.argmax() - low.argmax() >= LOW_CONTRAST * 255 + 2.5


def _low_contrast(patch: np.ndarray) -> bool:
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
    seen = Histogram(Pixels(read(0, strip)))
    for first in range(strip, height, strip):
        seen.add(Histogram(Pixels(read(first, min(strip, height - first)))))
    rule = TissueRule(seen)
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
def _pair_values() -> tuple[np.ndarray, np.ndarray]:
    """Return of each pair its saturation (65536,), as scikit-image's rgb2hsv has it, and whether it is not too dark."""
    scaled = np.arange(256) * (1.0 / 255)
    high, low = np.repeat(scaled, 256), np.tile(scaled, 256)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(high > low, (high - low) / high, 0.0), np.tile(np.arange(256) > LOWEST, 256)
