"""How much haematoxylin and eosin lies where: colour deconvolution (Ruifrok & Johnston 2001)."""

import numpy as np

# Optical density (R, G, B) of unit amounts of stain: Ruifrok & Johnston 2001, table 1; the third is orthogonal to both.
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
# log10; a pixel with less in every channel (brighter than 203 of 255) is empty; ours, set on real tiles.
WHITE_OD = 0.10


def separate_stains(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (haematoxylin, eosin, white) of uint8 images (..., 3): amounts of stain (log10 OD, float32) and a mask."""
    density = -np.log10((np.arange(256) + 1.0) / 256.0).astype(np.float32)  # Lambert-Beer, by table
    od = density[images]  # (..., 3)
    stains = stains_of(od)
    return stains[..., 0], stains[..., 1], od.max(-1) < WHITE_OD


def stains_of(density: np.ndarray) -> np.ndarray:
    """Return haematoxylin and eosin (..., 2) of optical densities of R, G, B (..., 3), log10. Linear: of means too."""
    basis = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    unmix = np.linalg.inv(basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(density.dtype)
    return density @ unmix[:, :2]
