"""One slide's field of the demo, of either tissue."""

import numpy as np

from datasets.demo_brain import draw_brain
from datasets.demo_lung import draw_lung
from datasets.demo_paint import Canvas, outline, parameters

DRAW = {"lung": draw_lung, "brain": draw_brain}


def draw_tissue(
    tissue: str, factors: dict[str, float], px: int, mpp: float, seed: int, blank_half: bool = False
) -> np.ndarray:
    """Return one slide's field: uint8 (px, px, 3), RGB.

    tissue: "lung" or "brain"; factors: the four of FACTORS, standard normal; mpp: micrometres per pixel;
    blank_half: the right half is empty glass. The same arguments give the same picture.
    """
    canvas = Canvas(px, mpp, np.random.default_rng(seed))
    DRAW[tissue](canvas, parameters(tissue, factors), outline(canvas, blank_half))
    return canvas.image()
