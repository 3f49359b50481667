"""What changes with the images shown: settings, and the side of the tiles."""

import math


def eased(start: float, end: float, images: int, over: int) -> float:
    """Return a value that goes from `start` at 0 images to `end` at `over`, and stays, along half a cosine.

    `over` 0: `end` from the beginning. The shape of R3GAN's schedules (Huang et al. 2024, appendix).
    """
    share = min(images / over, 1.0) if over else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def side_at(images: int, first: int, full: int, over: int) -> int:
    """Return the side of the tiles (pixels) that are trained after `images`: it doubles from `first` to `full`.

    Each side has an equal part of `over` images; from there on it is `full`. `first` 0: `full` from the beginning.
    """
    if not first or images >= over:
        return full
    doublings = (full // first).bit_length() - 1
    return first * 2 ** (images * doublings // over)
