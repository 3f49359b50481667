"""Tiles made alike: whatever a real and a synthetic picture file do not share is taken away before anybody sees it.

A real tile was a JPEG in its slide and another in its store, a synthetic one was never compressed: coefficients set to
zero and colour at half the resolution tell them apart. So all go through one JPEG round trip, as coarse as slides' own,
at the side in which they are shown (before the resize, the blocks of tiles of different sides would come to differ),
and then through one encoder, which writes no metadata. Zeros after the end make all files equally long. What a slide
that was compressed harder than the round trip has lost, the round trip cannot hide.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from common.errors import InputError
from datasets.tiles import area_resize, encode_image

ROUND_TRIP_QUALITY = 70  # with 4:2:0: as coarse as the JPEGs of Aperio slides, whose descriptions mostly say Q=70
FINAL_QUALITY = 95  # 4:4:4, as in tile stores


def made_alike(image: np.ndarray, side: int, quality: int = ROUND_TRIP_QUALITY) -> bytes:
    """Return a uint8 RGB picture (H, W, 3) as JPEG of `side` px, its central square, after the common round trip."""
    height, width = image.shape[:2]
    square = min(height, width)
    if square < side:
        raise InputError(f"a tile of {width} x {height} px is smaller than the quiz's side of {side} px: leave it out")
    top, left = (height - square) // 2, (width - square) // 2
    small = area_resize(image[top : top + square, left : left + square], side)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer) as once:
        return encode_image(np.array(once), "jpeg", FINAL_QUALITY)


def padded(pictures: Sequence[bytes]) -> list[bytes]:
    """Return JPEG files with zeros after their end, all as long as the longest; decoders stop at the end marker."""
    longest = max(map(len, pictures))
    return [data.ljust(longest, b"\0") for data in pictures]
