"""What is planned for one slide: the tiles to try, and the picture that shows the tissue and the tiles taken."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.errors import InputError
from common.files import atomic_path
from datasets import published_criteria as published
from datasets.previews import write_thumbnail
from datasets.slides import Scale, Slide

PICTURE_SIDE = 1000  # pixels, of the longer side of the picture
NOMINAL_MPP = 0.5  # um per pixel at the magnification of 20 that the published patches have
POWER_TOLERANCE = 0.25  # by which the tiles' um per pixel may differ from what the file's magnification promises; ours


@dataclass
class Plan:
    """The tiles to try on one slide, in order, and what its picture shows."""

    scale: Scale
    corners: np.ndarray  # (n, 2) x, y at level 0
    tissue: np.ndarray  # (n,) share of tissue; published: of its corner, 1
    white: np.ndarray  # (3,) colour of the glass
    picture: np.ndarray  # (h, w, 3) of the slide, see `picture_of`
    mask: np.ndarray  # (h, w) bool, its tissue
    share: float  # of tissue in the slide
    width: int  # of the slide at level 0
    taken: list[int] = field(default_factory=list)

    def draw(self, path: Path) -> None:
        """Write the overview, tissue outlined (green), tiles taken (blue), as PNG, and a small JPEG beside it."""
        picture, mask = self.picture.copy(), self.mask
        write_thumbnail(path.with_suffix(".jpg"), picture, mask, self._boxes())
        inner = np.pad(mask, 1, mode="edge")
        edge = mask & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])
        picture[edge] = (0, 150, 60)
        image = Image.fromarray(picture)
        draw = ImageDraw.Draw(image)
        for x, y, side in self._boxes():
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=(30, 60, 220))
        with atomic_path(path, synced=False) as partial:
            image.save(partial, "PNG", compress_level=1)

    def _boxes(self) -> Iterator[tuple[float, float, float]]:
        """Yield left, top and side of the tiles taken, in pixels of the picture."""
        scale = self.picture.shape[1] / self.width
        for number in self.taken:
            x, y = (self.corners[number] * scale).tolist()
            yield x, y, self.scale.step * scale


def picture_of(image: np.ndarray) -> np.ndarray:
    """Return an overview (h, w, 3), or the mask (h, w) of one, at the size of a slide's picture."""
    height, width = image.shape[:2]
    longer = max(height, width)
    zoom = min(1.0, PICTURE_SIDE / longer) if longer > 500 else max(1, 800 // longer)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    if image.ndim == 2:
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
    channels = (Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(3))  # RGB is copied
    return np.stack([channel.resize(size, Image.Resampling.BOX) for channel in channels], axis=-1)


def published_plan(slide: Slide, slide_mpp: float, target_mpp: float, tile_size: int) -> Plan:
    """Return the cells that the published extractor tries, in its order, with its mask (at the overview's size).

    Its patches have a side by the magnification that the file states (20 where it states none). InputError where that
    contradicts `slide_mpp`: tiles would then not show what `target_mpp` says.
    """
    side = int((slide.power or published.POWER) / published.POWER * (target_mpp / NOMINAL_MPP) * tile_size)
    mpp = side * slide_mpp / tile_size
    if not abs(mpp / target_mpp - 1) <= POWER_TOLERANCE:
        stated = f"states a magnification of {slide.power:g}" if slide.power else "states no magnification, taken as 20"
        raise InputError(
            f"{slide.path}: {stated}, with {slide_mpp:g} um per pixel: its published patches would have {mpp:g} um per "
            f"pixel instead of {target_mpp:g}; use --criteria default, which goes by the um per pixel"
        )
    overview, _ = slide.overview(min(PICTURE_SIDE, slide.size[0]))
    corners = published.cells(slide.size, side)
    columns, rows = slide.level_sizes[-1]
    across = np.minimum((corners[:, 0] / (slide.size[0] / columns)).astype(np.int64), columns - 1)
    down = np.minimum((corners[:, 1] / (slide.size[1] / rows)).astype(np.int64), rows - 1)
    tried, mask = np.zeros(len(corners), bool), np.zeros(overview.shape[:2], bool)
    picture_down, picture_across = ((np.arange(n) * m) // n for n, m in zip(mask.shape, (rows, columns), strict=True))
    for first, part in published.slide_mask(slide.read_rows, (columns, rows), slide.rows_at_a_time):
        here = (down >= first) & (down < first + len(part))
        tried[here] = part[down[here] - first, across[here]]
        here = (picture_down >= first) & (picture_down < first + len(part))
        mask[here] = part[picture_down[here] - first][:, picture_across]
    white = np.array([255, 255, 255], np.float32)  # not asked for
    scale = Scale(level=0, downsample=1.0, side=side, mpp=mpp, step=side)
    shares = np.ones(int(tried.sum()))
    picture, share = picture_of(overview), float(mask.mean())
    return Plan(scale, corners[tried], shares, white, picture, picture_of(mask), share, slide.size[0])
