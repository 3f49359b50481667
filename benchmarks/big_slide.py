"""A large synthetic Aperio slide for the benchmarks, written tile by tile: memory holds its level of a quarter only."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from datasets.demo_paint import FACTORS
from datasets.demo_tissue import draw_tissue
from datasets.tiles import area_resize

GLASS = (243, 242, 244)
PATTERN = 1024  # pixels of drawn tissue, mirrored over the slide
CELL = 64  # pixels: how finely the tissue's outline is drawn


def write_big_slide(path: Path, side: int, tile: int = 256, share: float = 0.45, quality: int = 70) -> Path:
    """Write an Aperio SVS of `side` pixels at 0.5 um per pixel (levels 1, 4, 16), `share` of it tissue; return `path`.

    JPEG as scanners write it: YCbCr, colour halved both ways, quality 70. The tissue is the demo's brain and lung.
    """
    import tifffile

    outline = _outline(side // CELL + 1, share)
    pieces = [_mirrored(draw_tissue(t, dict.fromkeys(FACTORS, 0.0), 2 * PATTERN, 0.5, 0)) for t in ("brain", "lung")]
    quarter = np.full((side // 4, side // 4, 3), GLASS, np.uint8)
    noise = np.random.default_rng(1).normal(0, 1.5, (2 * tile, 2 * tile, 3)).round().astype(np.int16)

    def tiles() -> Iterator[np.ndarray]:
        for y in range(0, side, tile):
            for x in range(0, side, tile):
                rows, columns = (np.arange(at, at + tile) for at in (y, x))
                tissue = outline[np.minimum(rows // CELL, len(outline) - 1)][
                    :, np.minimum(columns // CELL, len(outline) - 1)
                ]
                piece = pieces[(x // 4096 + y // 4096) % 2]
                drawn = piece[rows % len(piece)][:, columns % len(piece)]
                shift = (x * 7 + y * 13) // tile % tile
                grain = noise[shift : shift + tile, shift : shift + tile]
                image = np.clip(np.where(tissue[..., None], drawn, np.array(GLASS, np.uint8)) + grain, 0, 255).astype(
                    np.uint8
                )
                small = area_resize(image, tile // 4)[: max(0, side // 4 - y // 4), : max(0, side // 4 - x // 4)]
                quarter[y // 4 : y // 4 + small.shape[0], x // 4 : x // 4 + small.shape[1]] = small
                yield image

    head = "Aperio Image Library v11.2.1 \r\n"
    options = {"tile": (tile, tile), "photometric": "rgb", "compression": "jpeg", "metadata": None, "software": False}
    options |= {"compressionargs": {"level": quality}, "subsampling": (2, 2), "contiguous": False}
    about = f"{head}{side}x{side} [0,0 {side}x{side}] ({tile}x{tile}) JPEG/RGB Q={quality}|AppMag = 20|MPP = 0.5000"
    with tifffile.TiffWriter(path, byteorder="<") as file:
        file.write(tiles(), shape=(side, side, 3), dtype=np.uint8, description=about, **options)
        for level in (quarter, area_resize(quarter, side // 16)):
            file.write(level, description=f"{head}{side}x{side} -> {level.shape[1]}x{level.shape[0]}", **options)
    return path


def _outline(side: int, share: float) -> np.ndarray:
    """Return blobs (side, side) bool that cover `share`."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((side, side)), max(1, side / 24))
    return field > np.quantile(field, 1 - share)


def _mirrored(drawn: np.ndarray) -> np.ndarray:
    """Return the middle of a drawn field, mirrored so that its repetitions meet."""
    start = (len(drawn) - PATTERN) // 2
    middle = drawn[start : start + PATTERN, start : start + PATTERN]
    return np.concatenate([np.concatenate([h, h[:, ::-1]], 1) for h in (middle, middle[::-1])], 0)
