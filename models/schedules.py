"""Settings that change with the images shown."""

import math


def eased(start: float, end: float, images: int, over: int) -> float:
    """Return a value that goes from `start` at 0 images to `end` at `over`, and stays, along half a cosine.

    `over` 0: `end` from the beginning. The shape of R3GAN's schedules (Huang et al. 2024, appendix).
    """
    share = min(images / over, 1.0) if over else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
