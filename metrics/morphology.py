"""What an H&E tile looks like, in numbers a pathologist would use; no weights, any source of tiles.

Stains are separated first (metrics/stains.py). A nucleus is a blob of haematoxylin; touching nuclei are told apart by
the maxima of the distance to their outline. All tiles of a call are handled together, each measured on its own: the
values of a tile do not depend on its neighbours. Thresholds are fixed, so that real and generated tiles are measured
with the same ruler. Made for comparing sets of tiles, not for diagnosis.
"""

import math
from typing import Any

import numpy as np
from scipy import ndimage

from common.errors import InputError
from metrics.stains import separate_stains

# Thresholds and lengths below: ours, set on real lung, brain and breast tiles.
NUCLEUS_OD = 0.25  # haematoxylin, log10; nuclei lie above, cytoplasm and stroma below
NUCLEUS_CONTRAST = 0.15  # and above the tile's median of what is not white by as much: cytoplasm may be stained darkly
SMOOTHING = 0.6  # um, sd of the Gaussian that chromatin texture is smoothed with before thresholding
MIN_AREA = 8.0  # um^2: a disc of 3.2 um; smaller blobs are debris or noise
MIN_DISTANCE = 2.5  # um between the centres of two nuclei
TEXTURE_SCALE = 2.0  # um: detail finer than this counts as texture
CHUNK = 16_000_000  # pixels handled at a time

MEASURES = ("nuclear_density", "nuclear_size", "haematoxylin_od", "eosin_od", "white_space", "texture")
UNITS = {
    "nuclear_density": "nuclei per mm2 of tile",
    "nuclear_size": "um2",
    "haematoxylin_od": "log10 optical density",
    "eosin_od": "log10 optical density",
    "white_space": "share of the tile",
    "texture": "grey levels of 255",
}


def morphology(images: np.ndarray, mpp: float) -> dict[str, np.ndarray]:
    """Return the six MEASURES of each tile, float64 (n,), for images (n, H, W, 3) uint8 RGB at mpp um per pixel.

    nuclear_density: nuclei per mm^2 of tile, corrected for those that the tile's edges cut
    nuclear_size:    mean area in um^2 of nuclei that are whole and touch no other; NaN in a tile that has none
    haematoxylin_od: mean haematoxylin of the pixels that are not white; NaN in a white tile
    eosin_od:        mean eosin of the pixels neither white nor nuclear; NaN in a tile that has none
    white_space:     share of white pixels
    texture:         standard deviation of the grey detail finer than 2 um outside white pixels; NaN in a white tile
    InputError for another kind of array, or an mpp that is not a positive number. Beyond 2 um per pixel nuclei blur.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        found = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise InputError(f"morphology: expected tiles (n, height, width, 3) of 8-bit RGB, found {found}")
    if not (math.isfinite(mpp) and mpp > 0):
        raise InputError(f"morphology: mpp = {mpp}: a positive number of micrometres per pixel was expected")
    step = max(1, CHUNK // max(1, images.shape[1] * images.shape[2]))
    if not len(images):
        return {name: np.zeros(0) for name in MEASURES}
    parts = [_measure(images[i : i + step], mpp) for i in range(0, len(images), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in MEASURES}


def find_nuclei(haematoxylin: np.ndarray, white: np.ndarray, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (mask, nuclei) of haematoxylin and white pixels (n, H, W).

    mask: nuclear pixels, bool (n, H, W). nuclei: one row each, int64 (k, 4): tile, y, x of the innermost pixel, and its
    distance in pixels to the outline; what lies beyond a tile's edge is taken as more of the nucleus.
    """
    mask = _smooth(haematoxylin, SMOOTHING / mpp) > _thresholds(haematoxylin, white)[:, None, None]
    labels, n = ndimage.label(mask, _IN_PLANE)
    small = np.bincount(labels.ravel(), minlength=n + 1) < MIN_AREA / mpp**2
    mask &= ~small[labels]
    depth = ndimage.distance_transform_edt(mask, sampling=(1e6, 1, 1)).clip(max=1e3).astype(np.float32)
    smooth = _smooth(depth, 1 / mpp) * mask
    reach = 2 * max(1, round(MIN_DISTANCE / mpp)) + 1
    peaks = mask & (smooth == ndimage.maximum_filter(smooth, (1, reach, reach)))
    labels, _ = ndimage.label(peaks, _IN_PLANE_8)  # equal neighbouring pixels are one peak
    where = np.nonzero(labels)
    first = np.unique(labels[where], return_index=True)[1]
    rows = [axis[first] for axis in where]  # tile, y, x
    return mask, np.stack([*rows, depth[tuple(rows)].astype(np.int64)], axis=1)


_IN_PLANE = np.zeros((3, 3, 3), bool)  # neighbours within a tile, never from tile to tile
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_IN_PLANE_8 = np.zeros((3, 3, 3), bool)
_IN_PLANE_8[1] = True


def _measure(images: np.ndarray, mpp: float) -> dict[str, np.ndarray]:
    haematoxylin, eosin, white = separate_stains(images)
    mask, nuclei = find_nuclei(haematoxylin, white, mpp)
    grey = images @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    detail = grey - _smooth(grey, TEXTURE_SCALE / mpp)
    return {
        "nuclear_density": _density(nuclei, images.shape) / (mpp**2 * 1e-6),
        "nuclear_size": _mean_size(mask, nuclei) * mpp**2,
        "haematoxylin_od": _mean_where(haematoxylin, ~white),
        "eosin_od": _mean_where(eosin, ~(white | mask)),
        "white_space": white.mean((1, 2)),
        "texture": np.sqrt(_mean_where(detail**2, ~white)),
    }


def _thresholds(haematoxylin: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Haematoxylin above which a pixel is nuclear, per tile (n,); the median is of every other pixel each way."""
    values = np.sort(np.where(white, np.inf, haematoxylin)[:, ::2, ::2].reshape(len(white), -1), axis=1)
    middle = np.isfinite(values).sum(1) // 2  # (n,)
    median = np.where(middle > 0, values[np.arange(len(values)), middle], 0)
    return np.maximum(NUCLEUS_OD, median + NUCLEUS_CONTRAST).astype(np.float32)


def _density(nuclei: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nuclei per square pixel (n,) of tiles (n, H, W, 3), free of a bias from those that an edge cuts.

    Whole nuclei count, each over the area in which its centre leaves it whole (Miles-Lantuéjoul correction).
    """
    n, height, width, _ = shape
    tile, y, x, radius = nuclei.T
    whole = (x >= radius) & (y >= radius) & (x + radius < width) & (y + radius < height)
    room = (width - 2 * radius[whole]) * (height - 2 * radius[whole])
    return np.bincount(tile[whole], 1 / room, minlength=n)


def _mean_size(mask: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """Mean pixels (n,) of blobs that hold one nucleus and do not touch the tile's edge; NaN where there are none."""
    blobs, n_blobs = ndimage.label(mask, _IN_PLANE)
    held = blobs[tuple(nuclei.T[:3])]
    good = np.bincount(held, minlength=n_blobs + 1) == 1
    for edge in (blobs[:, [0, -1], :], blobs[:, :, [0, -1]]):
        good[np.unique(edge)] = False
    area = np.bincount(blobs.ravel(), minlength=n_blobs + 1)
    tile, chosen = nuclei[good[held], 0], held[good[held]]
    number = np.bincount(tile, minlength=len(mask))
    total = np.bincount(tile, area[chosen], minlength=len(mask))
    return np.divide(total, number, out=np.full(len(mask), np.nan), where=number > 0)


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    total, number = (values * where).sum((1, 2), dtype=np.float64), where.sum((1, 2))
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _smooth(values: np.ndarray, sd: float) -> np.ndarray:
    """Gaussian of `sd` pixels within each tile (n, H, W)."""
    return ndimage.gaussian_filter(values, (0, sd, sd), mode="nearest", truncate=3.0)


def summarise(values: dict[str, np.ndarray], rows: Any = None) -> dict[str, float | None]:
    """Return the mean of each measure over the tiles `rows` (default all) that have it; None where none has."""
    chosen = {name: v if rows is None else v[rows] for name, v in values.items()}
    return {k: float(np.nanmean(v)) if np.isfinite(v).any() else None for k, v in chosen.items()}
