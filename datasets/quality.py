"""Which tiles are fit for use, and the scores by which they are judged. Arrays in, numbers out; tiles are uint8 RGB."""

from functools import reduce

import numpy as np

from datasets.pixel_loops import blur_energies, stained_and_pen_pixels
from datasets.tissue import BLACK_LEVEL, STAIN_RANGE, WHITE_LEVEL, optical_densities

MIN_STAINED = 0.05  # share of stained pixels under which a tile is blank
MAX_REPEATED = 0.1  # share of blocks like their neighbour, and not white, above which a tile is damaged
BLOCK = 16  # pixels; what a JPEG codes together is as large, or a half

# Haematoxylin and eosin take up green more than red light; blue, green and black inks do not. On 240 real tiles of
# three sources (lung, lung cancer, glioma) at most 0.003 of the pixels were beyond both bounds. Red ink is like blood.
PEN_RED_OVER_GREEN = 0.1  # optical density
PEN_STAIN = 0.15

SMOOTH = (0.2097, 0.5806)  # weights of a neighbour and of the pixel itself: a Gaussian of 0.7 pixels


def judge(
    image: np.ndarray, white: np.ndarray, min_sharpness: float, max_pen: float
) -> tuple[str | None, dict[str, float]]:
    """Return why a tile is unfit ("damaged", "blank", "pen", "blurred"; None for a good one), and its scores.

    Damaged: blocks like their neighbour, as decoders leave where data was lost: one colour, or zeros read as codes.
    Blank: hardly any stain.
    Scores: `stained` and `pen`, shares of the pixels, and `sharpness`; those that were needed to decide.
    """
    if is_damaged(image):
        return "damaged", {}
    stained, pen = stained_and_pen(image, white)
    scores = {"stained": stained, "pen": pen}
    if stained < MIN_STAINED:
        return "blank", scores
    if pen > max_pen:
        return "pen", scores
    scores["sharpness"] = sharpness(image)
    return ("blurred" if scores["sharpness"] < min_sharpness else None), scores


def is_damaged(image: np.ndarray) -> bool:
    """Return whether over MAX_REPEATED of a tile's blocks are the same as their left neighbour, and not white."""
    side = max(1, min(BLOCK, min(image.shape[:2]) // 2))
    height, width = (n // side * side for n in image.shape[:2])
    planes = image[:height, :width].transpose(2, 0, 1)
    every = max(1, side // 4)
    if _repeated_share(planes, side, every) <= MAX_REPEATED:  # a block that is the same has the same few pixels
        return False
    return every == 1 or _repeated_share(planes, side, 1) > MAX_REPEATED


def _repeated_share(planes: np.ndarray, side: int, every: int) -> float:
    """Return the share of blocks that equal their left neighbour within a grey level, by `every`-th pixel each way."""
    few, side = np.ascontiguousarray(planes[:, ::every, ::every]), side // every
    left, right = few[:, :, :-side], few[:, :, side:]
    differ = _in_blocks(np.maximum(left, right) - np.minimum(left, right), side, np.maximum)  # (3, rows, columns)
    low = _in_blocks(right, side, np.minimum)
    return float(((differ.max(0) <= 1) & (low.min(0) < WHITE_LEVEL + (every > 1))).mean())


def _in_blocks(planes: np.ndarray, side: int, extreme: np.ufunc) -> np.ndarray:
    rows = reduce(extreme, (planes[:, i::side] for i in range(side)))
    return reduce(extreme, (rows[:, :, i::side] for i in range(side)))


def stained_and_pen(image: np.ndarray, white: np.ndarray) -> tuple[float, float]:
    """Return the shares of a tile's pixels that are stained, and that have a pen's colour; by every second pixel."""
    bounds = (BLACK_LEVEL, STAIN_RANGE[0], PEN_STAIN, PEN_RED_OVER_GREEN)
    stained, pen = stained_and_pen_pixels(image, optical_densities(white), *bounds)
    seen = ((image.shape[0] + 1) // 2) * ((image.shape[1] + 1) // 2)
    return stained / seen, pen / seen


def sharpness(image: np.ndarray) -> float:
    """Return 0 (blurred) to 1 of a tile: how much detail a further blur would take away.

    After Crété et al. 2007, "The blur effect": re-blurred with a 5-pixel window, compared by its gradients; here by
    their squares and after a slight smoothing, so that noise and JPEG do not count as detail. Measured with JPEG at
    0.5 um per pixel: sharp tiles 0.24 to 0.53, blurred with a Gaussian of 2 pixels 0.09 to 0.22, of 3 at most 0.14.
    """
    before, after = blur_energies(image, *SMOOTH)
    return float(1 - np.sqrt(after / (before + 1e-6)))
