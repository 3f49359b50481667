"""Where the tissue is, and which tiles to take in which order. Arrays in, arrays out."""

import numpy as np
from scipy import ndimage

# Stain = spread of the three optical densities of a pixel. Glass, dust, black gaps and grey fill have none; all numbers
# here were set on the test slides and tiles (glass 0.00 to 0.02, pale lung 0.10, dense brain 0.29 at the median).
STAIN_RANGE = (0.05, 0.10)  # bounds of Otsu's threshold: a blank slide is not split in its noise, nor tissue in two
BLACK_LEVEL = 45  # all channels below: too dark for its colour to mean anything
WHITE_LEVEL = 205  # all channels above: may be glass
WHITE_SPREAD = 24  # largest difference of channels that glass may have
MAX_HOLE_MM2 = 0.06  # holes up to this area are lumen, such as an alveolus, and belong to the tissue


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
    low, high = image.min(-1), image.max(-1)
    glass = image[(low > WHITE_LEVEL) & (high - low < WHITE_SPREAD)]
    if len(glass) < 0.02 * low.size:
        return np.array([255, 255, 255], np.float32)
    return np.median(glass, axis=0).astype(np.float32)


def otsu_threshold(values: np.ndarray, bins: int = 128) -> float:
    """Return the threshold of largest between-class variance; Otsu 1979, eq. 18."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    moment = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below / below[-1] - moment) ** 2 / (below * above)
    return float(edges[1 + np.nanargmax(between[:-1])]) if counts.max() < counts.sum() else float(values.max())


def tissue_mask(overview: np.ndarray, mpp: float) -> tuple[np.ndarray, dict[str, float]]:
    """Return the tissue (h, w) bool of an overview uint8 RGB with `mpp` um per pixel, and the numbers behind it.

    Otsu's threshold on the stain, within STAIN_RANGE; then small gaps are closed, lumina filled, crumbs removed.
    """
    white = glass_colour(overview)
    stain = ndimage.gaussian_filter(stain_strength(overview, white), 1.0)
    threshold = float(np.clip(otsu_threshold(stain), *STAIN_RANGE))
    mask = stain > threshold
    mask = ndimage.binary_closing(np.pad(mask, 2, mode="edge"), iterations=2)[2:-2, 2:-2] | mask
    mask = _without_small(mask, 16)
    holes = ~mask
    mask |= holes & ~_without_small(holes, MAX_HOLE_MM2 * 1e6 / mpp**2)
    return mask, {"stain_threshold": round(threshold, 4), "share": round(float(mask.mean()), 4)}


def _without_small(mask: np.ndarray, least: float) -> np.ndarray:
    """Return the mask without its connected pieces of fewer than `least` pixels."""
    pieces, n = ndimage.label(mask)
    if n == 0:
        return mask
    keep = np.bincount(pieces.ravel()) >= least
    keep[0] = False
    return keep[pieces]


def tile_grid(size: tuple[int, int], step: float) -> np.ndarray:
    """Return level-0 corners (n, 2) x, y of tiles `step` apart that lie wholly in `size`, row by row.

    From the slide's corner: where the slide's own tiles are as large, each is then decoded once.
    """
    x, y = (np.rint(step * np.arange(int(length / step + 1e-6))).astype(np.int64) for length in size)
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def tissue_fractions(mask: np.ndarray, corners: np.ndarray, step: float, scale: float) -> np.ndarray:
    """Return the share of tissue (n,) in squares of `step` level-0 pixels; a mask pixel is `scale` level-0 pixels.

    Read off a summed-area table.
    """
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = mask.shape
    x0, y0 = (np.rint(corners / scale).astype(np.int64)).T
    x1, y1 = (np.rint((corners + step) / scale).astype(np.int64)).T
    x0, x1 = np.minimum(x0, width - 1), np.clip(x1, 1, width)
    y0, y1 = np.minimum(y0, height - 1), np.clip(y1, 1, height)
    x1, y1 = np.maximum(x1, x0 + 1), np.maximum(y1, y0 + 1)
    area = (x1 - x0) * (y1 - y0)
    return (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / area


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
