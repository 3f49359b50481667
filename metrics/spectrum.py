"""Power over spatial frequencies: where a generator draws a grid that tissue does not have, and what it blurs."""

from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from common.errors import InputError
from metrics.colour import greyscale

WINDOW = 7  # frequencies on a side of the neighbourhood that a peak is held against; ours


def log_power(tiles: np.ndarray) -> np.ndarray:
    """Return log10 of the mean power spectrum of the grey values of tiles (n, s, s, 3) uint8 -> (s, s), centre 0.

    Each tile loses its mean and is tapered by a Hann window, so that its edges draw no cross.
    """
    if len(tiles) < 1 or tiles.shape[1] != tiles.shape[2] or tiles.shape[1] < 2 * WINDOW:
        raise InputError(f"spectrum: square tiles of at least {2 * WINDOW} px were expected, found {tiles.shape}")
    side = tiles.shape[1]
    taper = np.hanning(side + 2)[1:-1]
    total = np.zeros((side, side))
    for tile in tiles:  # one at a time: no second copy of them all
        grey = greyscale(tile[None])[0, ..., 0].astype(np.float64)
        total += np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(taper, taper))) ** 2
    return np.log10(np.fft.fftshift(total) / len(tiles) + 1e-12)


def peak(spectrum: np.ndarray, lowest: float = 0.125) -> float:
    """Return how far the highest lone frequency of log_power (s, s) stands above its neighbourhood, in decades.

    The neighbourhood is the median of WINDOW x WINDOW frequencies, of the spectrum as it repeats itself. Frequencies
    under `lowest` cycles per pixel are left out: tissue has its own structure there, and power falls steeply.
    """
    side = len(spectrum)
    frequency = np.abs(np.arange(side) - side // 2) / side  # cycles per pixel
    high = np.maximum(frequency[:, None], frequency[None, :]) >= lowest
    return float((spectrum - median_filter(spectrum, WINDOW, mode="wrap"))[high].max())


def radial(spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (cycles per pixel (k,), mean of log_power over the ring of that frequency (k,)), up to 0.5."""
    side = len(spectrum)
    place = np.arange(side) - side // 2
    ring = np.round(np.hypot(place[:, None], place[None, :])).astype(int)
    rings = np.arange(1, side // 2 + 1)
    return rings / side, np.array([spectrum[ring == k].mean() for k in rings])


def peaks_beside(generated: Any, real: Any) -> dict[str, float]:
    """Return `generated` and `real`, each set of tiles' peak, and `excess`, the one over the other, in decades."""
    made, true = (peak(log_power(tiles)) for tiles in (generated, real))
    return {"generated": made, "real": true, "excess": made - true}
