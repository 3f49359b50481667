"""The demo's slides as files: Aperio SVS (tiled, pyramidal, JPEG, thumbnail second); one seed, one set of bytes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_path
from datasets.demo_tissue import draw_tissue

BASE_MPP = 0.5  # um per pixel of a 20x scan
TILE = 256  # pixels; Aperio's own
QUALITY = 88  # JPEG
TRUNCATED_AT = 0.15  # share of the faulty slide's bytes that is there: not even the whole of level 0


@dataclass(frozen=True)
class SlidePlan:
    """One slide to draw. `kind`: "" (plain), "no_mpp", "x40", "blank_half" or "faulty"."""

    name: str  # GTEX-15RJ7-0625.svs
    donor: str
    tissue: str  # lung | brain
    factors: dict[str, float]
    seed: int
    kind: str = ""


def write_slide(plan: SlidePlan, path: Path, slide_px: int) -> Path:
    """Draw the slide and write it to `path`, whole or not at all. slide_px: side in pixels at 0.5 um per pixel."""
    scale = 2 if plan.kind == "x40" else 1
    image = draw_tissue(
        plan.tissue, plan.factors, slide_px * scale, BASE_MPP / scale, plan.seed, blank_half=plan.kind == "blank_half"
    )
    with atomic_path(path) as partial:
        write_svs(partial, image, None if plan.kind == "no_mpp" else BASE_MPP / scale, Path(plan.name).stem)
        if plan.kind == "faulty":
            content = partial.read_bytes()
            partial.write_bytes(content[: int(len(content) * TRUNCATED_AT)])
    return path


def write_svs(path: Path, image: np.ndarray, mpp: float | None, name: str) -> None:
    """Write uint8 (H, W, 3) RGB as an Aperio SVS: level 0, thumbnail in strips, then levels 4 times smaller each.

    mpp None: a slide that states neither its mpp nor its power, as old archives hold them. No time stamp is written.
    """
    import tifffile

    height, width = image.shape[:2]
    head = "Aperio Image Library v11.2.1 \r\n"
    size = f"{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE})"
    scan = f" JPEG/RGB Q={QUALITY}"
    if mpp is not None:
        scan += f"|AppMag = {round(10 / mpp)}|StripeWidth = 2040|ScanScope ID = DEMO|Filename = {name}|MPP = {mpp:.4f}"
        scan += f"|Left = 25.0|Top = 23.0|OriginalWidth = {width}|OriginalHeight = {height}"
    jpeg = {"compression": "jpeg", "compressionargs": {"level": QUALITY}, "photometric": "rgb"}  # stored as YCbCr
    common = {"metadata": None, "software": False, "contiguous": False} | jpeg
    small = max(1, max(height, width) // 256)
    thumbnail = _shrink(image, small)
    with tifffile.TiffWriter(path, bigtiff=False, byteorder="<") as tif:
        tif.write(image, tile=(TILE, TILE), description=head + size + scan, **common)
        about = f"{head}{width}x{height} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - "
        tif.write(thumbnail, rowsperstrip=16, description=about, **common)
        level, factor = image, 1
        while min(level.shape[:2]) >= 4 * 128:
            level, factor = _shrink(level, 4), factor * 4
            about = f"{head}{size} -> {level.shape[1]}x{level.shape[0]} JPEG/RGB Q={QUALITY}"
            tif.write(level, tile=(TILE, TILE), description=about, **common)


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Return uint8 (H, W, 3) shrunk by a whole factor, by the mean over squares of pixels."""
    height, width = (side // factor for side in image.shape[:2])
    image = image[: height * factor, : width * factor]
    total = np.full((height, width, 3), factor * factor // 2, np.uint32)
    for row in range(factor):
        for column in range(factor):
            total += image[row::factor, column::factor]
    return (total // (factor * factor)).astype(np.uint8)
