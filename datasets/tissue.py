"""Where the tissue is, and which tiles to take in which order. Arrays in, arrays out."""

import itertools
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

# Stain = spread of the three optical densities of a pixel. Glass, dust, black gaps and grey fill have none; all numbers
# here were set on the test slides and tiles (glass 0.00 to 0.02, pale lung 0.10, dense brain 0.29 at the median).
STAIN_RANGE = (0.05, 0.10)  # bounds of Otsu's threshold: a blank slide is not split in its noise, nor tissue in two
BLACK_LEVEL = 45  # all channels below: too dark for its colour to mean anything
WHITE_LEVEL = 205  # all channels above: may be glass
WHITE_SPREAD = 24  # largest difference of channels that glass may have
MAX_HOLE_MM2 = 0.06  # holes up to this area are lumen, such as an alveolus, and belong to the tissue
SMOOTHING, REACH = 1.0, 4  # sd of the Gaussian that the stain is smoothed with, pixels; what it reaches
BINS = 128  # of the histogram that Otsu's threshold is read off
BAND = 1 << 18  # pixels of an overview that are handled at a time
WHITE_DENSITY = 0.10  # optical density under which a pixel is empty, as in metrics/stains.py


def optical_densities(white: np.ndarray) -> np.ndarray:
    """Return the optical density (3, 256) float32 of each channel's values, where `white` (3,) has none."""
    return np.log10((white.astype(np.float32)[:, None] + 1) / np.arange(1, 257, dtype=np.float32))


def stain_strength(image: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return max - min over channels of the optical density of uint8 RGB (H, W, 3): (H, W) float32; grey, black: 0."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    red, green, blue = (table.take(plane) for table, plane in zip(optical_densities(white), planes, strict=True))
    stain = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    stain[np.maximum(np.maximum(planes[0], planes[1]), planes[2]) < BLACK_LEVEL] = 0
    return stain


def glass_colour(image: np.ndarray) -> np.ndarray:
    """Return the colour (3,) of the glass: the median of what looks like glass, pure white where hardly any does."""
    counts = np.zeros((3, 256), np.int64)
    for band in _bands(image):
        planes = np.ascontiguousarray(image[band].transpose(2, 0, 1))
        low, high = planes.min(0), planes.max(0)
        glass = (low > WHITE_LEVEL) & (high - low < WHITE_SPREAD)
        counts += [np.bincount(plane[glass], minlength=256) for plane in planes]
    n = int(counts[0].sum())
    if n < 0.02 * image[..., 0].size:
        return np.array([255, 255, 255], np.float32)
    below = counts.cumsum(1)
    middle = [[np.searchsorted(row, k, side="right") for k in ((n - 1) // 2, n // 2)] for row in below]
    return np.mean(middle, axis=1).astype(np.float32)


def otsu_threshold(counts: np.ndarray, edges: np.ndarray) -> float:
    """Return the threshold of largest between-class variance of values counted between `edges`; Otsu 1979, eq. 18."""
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    moment = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below / below[-1] - moment) ** 2 / (below * above)
    return float(edges[1 + np.nanargmax(between[:-1])])


def stained(overview: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return (h, w) bool: where the smoothed stain of an overview uint8 RGB is above Otsu's threshold.

    The threshold stays in STAIN_RANGE. The stain is computed anew for its bounds, its histogram and the mask: kept, it
    would take more memory than all else.
    """
    bounds = np.array([(part.min(), part.max()) for _, part in _smoothed(overview, white)])
    low, high = bounds[:, 0].min(), bounds[:, 1].max()
    threshold = high
    if low < high:
        counted = [np.histogram(part, BINS, (low, high)) for _, part in _smoothed(overview, white)]
        threshold = otsu_threshold(np.sum([counts for counts, _ in counted], axis=0), counted[0][1])
    threshold, mask = float(np.clip(threshold, *STAIN_RANGE)), np.empty(overview.shape[:2], bool)
    for band, part in _smoothed(overview, white):
        np.greater(part, threshold, out=mask[band])
    return mask


def tissue_mask(rough: np.ndarray, mpp: float) -> np.ndarray:
    """Return the tissue (h, w) bool of an overview with `mpp` um per pixel, given where it is `stained` (h, w) bool.

    Small gaps are closed, crumbs removed, lumina filled.
    """
    mask = rough | ndimage.binary_closing(np.pad(rough, 2, mode="edge"), iterations=2)[2:-2, 2:-2]
    _remove_small(mask, 16)
    glass = np.logical_not(mask, out=mask)
    _remove_small(glass, MAX_HOLE_MM2 * 1e6 / mpp**2)
    return np.logical_not(glass, out=glass)


def _smoothed(overview: np.ndarray, white: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of the overview and their smoothed stain, float32."""
    for band in _bands(overview):
        first = max(0, band.start - REACH)
        stain = ndimage.gaussian_filter(stain_strength(overview[first : band.stop + REACH], white), SMOOTHING)
        yield band, stain[band.start - first :][: band.stop - band.start]


def _remove_small(mask: np.ndarray, least: float) -> None:
    """Take the connected pieces of fewer than `least` pixels out of the mask."""
    pieces = np.empty(mask.shape, np.uint16)
    try:
        n = ndimage.label(mask, output=pieces)
    except RuntimeError:  # more pieces than that can count: noise
        pieces, n = ndimage.label(mask)
    sizes = sum(np.bincount(pieces[band].ravel(), minlength=n + 1) for band in _bands(mask))
    keep = sizes >= least
    keep[0] = False
    for band in _bands(mask):
        mask[band] = keep[pieces[band]]


def _bands(image: np.ndarray) -> Iterator[slice]:
    """Yield the rows of an image, so many at a time that what is made of them on the way is small."""
    rows = max(1, BAND // image.shape[1])
    yield from (slice(first, min(first + rows, len(image))) for first in range(0, len(image), rows))


def tile_grid(size: tuple[int, int], step: float) -> np.ndarray:
    """Return level-0 corners (n, 2) x, y of tiles `step` apart that lie wholly in `size`, row by row.

    From the slide's corner: where the slide's own tiles are as large, each is then decoded once.
    """
    x, y = (np.rint(step * np.arange(int(length / step + 1e-6))).astype(np.int64) for length in size)
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def tissue_fractions(mask: np.ndarray, corners: np.ndarray, step: float, scale: float) -> np.ndarray:
    """Return the share of tissue (n,) in squares of `step` level-0 pixels; a mask pixel is `scale` level-0 pixels.

    Read off a summed-area table of which the rows at the squares' edges alone are made.
    """
    height, width = mask.shape
    x0, y0 = (np.rint(corners / scale).astype(np.int64)).T
    x1, y1 = (np.rint((corners + step) / scale).astype(np.int64)).T
    x0, x1 = np.minimum(x0, width - 1), np.clip(x1, 1, width)
    y0, y1 = np.minimum(y0, height - 1), np.clip(y1, 1, height)
    x1, y1 = np.maximum(x1, x0 + 1), np.maximum(y1, y0 + 1)
    edges = np.unique(np.concatenate([y0, y1]))
    sums = np.zeros((len(edges), width + 1), np.int32)
    for number, (above, below) in enumerate(itertools.pairwise(edges), start=1):
        sums[number, 1:] = sums[number - 1, 1:] + mask[above:below].sum(0, dtype=np.int32).cumsum(dtype=np.int32)
    upper, lower = np.searchsorted(edges, y0), np.searchsorted(edges, y1)
    area = (x1 - x0) * (y1 - y0)
    return (sums[lower, x1] - sums[upper, x1] - sums[lower, x0] + sums[upper, x0]) / area


def spread_order(corners: np.ndarray, step: float) -> np.ndarray:
    """Return an order (n,) of which every beginning is spread over all corners, the same on every machine.

    Corners are put on a Morton curve, which keeps neighbours together; along it, they are taken by the multiples of
    the golden ratio modulo 1, of which any first few are evenly spread (three-distance theorem).
    """
    cells = np.rint(corners / step).astype(np.uint64)
    curve = np.zeros(len(cells), np.uint64)
    for bit in range(20):
        for axis in (0, 1):
            curve |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(2 * bit + axis)
    along = np.argsort(curve, kind="stable")
    golden = (np.arange(len(along), dtype=np.float64) * ((5**0.5 - 1) / 2)) % 1
    return along[np.argsort(golden, kind="stable")]


def mean_density(image: np.ndarray) -> np.ndarray:
    """Return the mean optical density (log10) of R, G, B (3,) float64 of a tile's pixels that are not white.

    Every fourth pixel each way is enough. White: below WHITE_DENSITY in all three; a tile of white alone has 0.
    """
    density = -np.log10((np.arange(256) + 1.0) / 256.0)[image[::4, ::4].reshape(-1, 3)]  # (n, 3), Lambert-Beer
    stained = density[density.max(-1) >= WHITE_DENSITY]
    return stained.mean(0) if len(stained) else np.zeros(3)
