"""Coordinates of tiles that CLAM or TRIDENT chose, in HDF5: a dataset `coords` (n, 2), x and y at level 0.

Attributes of `coords` say how large a tile is. TRIDENT: patch_size_level0 in pixels at level 0 (and the slide's
level0_width and level0_height). CLAM: patch_size in pixels of the pyramid level patch_level, and downsample, that
level's (a number, or one per axis).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.archives import refuse_false_hdf5
from common.errors import InputError, shorten

SIZE = ("level0_width", "level0_height")
REMEDY = "make the coordinates again, or leave --coordinates out"


@dataclass
class Coordinates:
    """The squares of one slide that another tool chose."""

    path: Path
    corners: np.ndarray  # (n, 2) int64, x and y at level 0, each once
    side: float  # of a square, level-0 pixels
    size: tuple[int, int] | None = None  # of the slide at level 0, where the file says it (TRIDENT)


def read_coordinates(path: str | Path, downsamples: Sequence[float] = (1.0,)) -> Coordinates:
    """Read the coordinates of one slide, whose pyramid has these `downsamples`. InputError says what cannot be."""
    import h5py  # few slides come with coordinates

    path = Path(path)
    try:
        refuse_false_hdf5(path)
        with h5py.File(path) as file:
            if "coords" not in file:
                old = "it holds pictures of tiles (imgs) without their places; " if "imgs" in file else ""
                raise InputError(f"{path}: no dataset coords (found {shorten(file) or 'none'}); {old}{REMEDY}")
            corners, about = np.asarray(file["coords"][()]), dict(file["coords"].attrs)
    except (OSError, AttributeError, TypeError, KeyError) as error:  # h5py says each of them of a damaged file
        raise InputError(f"{path}: not a readable HDF5 file ({str(error)[:80]}); {REMEDY}") from None
    if corners.ndim != 2 or corners.shape[1] != 2 or corners.dtype.kind not in "iuf":
        raise InputError(f"{path}: coords is {corners.dtype} {corners.shape}, numbers (n, 2) were expected; {REMEDY}")
    if not np.isfinite(corners).all():
        raise InputError(f"{path}: coords holds NaN or infinity, pixels at level 0 were expected; {REMEDY}")
    if not len(corners):
        raise InputError(f"{path}: no coordinates in it: no tile was chosen on this slide; {REMEDY}")
    _, first = np.unique(corners, axis=0, return_index=True)
    size = tuple(int(about[name]) for name in SIZE) if all(name in about for name in SIZE) else None
    return Coordinates(path, corners[np.sort(first)].astype(np.int64), _side(path, about, downsamples), size)


def _side(path: Path, about: Mapping[str, Any], downsamples: Sequence[float]) -> float:
    """Return the side of a tile in level-0 pixels."""
    try:
        if "patch_size_level0" in about:
            side = float(about["patch_size_level0"])
        else:
            level = int(about["patch_level"])
            stated = about["downsample"] if "downsample" in about else downsamples[level]
            downsample = np.mean(np.asarray(stated, float))
            side = float(about["patch_size"] * downsample * about.get("custom_downsample", 1))
    except (KeyError, IndexError, TypeError, ValueError):
        raise InputError(
            f"{path}: does not say how large a tile is: the attribute patch_size_level0 of coords (TRIDENT), or "
            f"patch_size, patch_level and downsample (CLAM) were expected (found {shorten(about) or 'none'}); {REMEDY}"
        ) from None
    if not 1 <= side < 1e6:
        raise InputError(f"{path}: tiles of {side:g} pixels at level 0 cannot be; {REMEDY}")
    return side
