"""What other tools said of a slide and the extraction takes over: where its tiles lie, where its tissue is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import sha256_of
from datasets.coordinates import read_coordinates
from datasets.polygons import mask_of, read_polygons
from datasets.slides import Scale, Slide
from datasets.tiles import MPP_TOLERANCE

COORDINATES = ("{}_patches.h5", "{}.h5")  # as TRIDENT and CLAM name them
MASKS = ("{}.geojson", "{}.json")


@dataclass(frozen=True)
class Given:
    """The folders of --coordinates and --masks, None where the toolkit's own grid or mask is used; picklable."""

    coordinates: Path | None = None
    masks: Path | None = None

    def record(self, key: str) -> dict[str, Any]:
        """Return what a store keeps of the files that it was cut by: {"given": {kind: SHA-256}}; {} for none."""
        kinds = (("coordinates", self.coordinates, COORDINATES), ("mask", self.masks, MASKS))
        found = {kind: sha256_of(_find(folder, names, key, kind)) for kind, folder, names in kinds if folder}
        return {"given": found} if found else {}

    def changes(self, key: str, extra: Mapping[str, Any]) -> list[str]:
        """Return in words what was another than in the run that cut the store, whose `extra` is given."""
        try:
            before, now = extra.get("given", {}), self.record(key).get("given", {})
        except InputError as error:
            return [str(error)]
        return [
            f"{kind} ({(before.get(kind) or 'its own')[:12]} there, {(now.get(kind) or 'its own')[:12]} now)"
            for kind in ("coordinates", "mask")
            if before.get(kind) != now.get(kind)
        ]

    def squares(self, slide: Slide, mpp: float, scale: Scale, tile_size: int) -> tuple[Scale, np.ndarray, int] | None:
        """Return how to read the listed squares, their corners (n, 2), how many cross the slide's edge (left out).

        None without --coordinates. `scale` is what --mpp and --tile_size ask for, `mpp` the slide's. InputError where
        the slide has no file, or one of other squares or of another slide.
        """
        if self.coordinates is None:
            return None
        listed = read_coordinates(_find(self.coordinates, COORDINATES, slide.key, "coordinates"), slide.downsamples)
        if abs(listed.side / scale.step - 1) > MPP_TOLERANCE:
            raise InputError(
                f"{listed.path}: squares of {listed.side:g} pixels at level 0, {listed.side * mpp:.4g} um; --mpp and "
                f"--tile_size ask for {scale.step * mpp:.4g} um; --mpp {listed.side * mpp / tile_size:.4g} would fit"
            )
        if listed.size not in (None, slide.size):
            raise InputError(
                f"{listed.path}: was made on a slide of {listed.size[0]} x {listed.size[1]} pixels, {slide.path} has "
                f"{slide.size[0]} x {slide.size[1]}: the file of this slide was expected"
            )
        size = np.array(slide.size)
        if outside := int(((listed.corners < 0) | (listed.corners >= size)).any(1).sum()):
            raise InputError(
                f"{listed.path}: {outside} of {len(listed.corners)} coordinates lie outside the slide of {size[0]} x "
                f"{size[1]} pixels: is the file of another slide or level? Coordinates at level 0 were expected"
            )
        inside = (listed.corners + int(listed.side) <= size).all(1)
        if not inside.any():
            raise InputError(
                f"{listed.path}: none of {len(inside)} squares lies wholly in the slide; check --coordinates"
            )
        exact = slide.scale_for(mpp, listed.side * mpp / tile_size, tile_size)
        return exact, listed.corners[inside], int((~inside).sum())

    def tissue(self, slide: Slide, shape: tuple[int, int]) -> np.ndarray | None:
        """Return the tissue, bool (h, w) of `shape`, an overview of the whole slide; None without --masks.

        InputError where the slide has no file, or a file without polygons on the slide.
        """
        if self.masks is None:
            return None
        path = _find(self.masks, MASKS, slide.key, "mask")
        mask = mask_of(read_polygons(path), shape, slide.size[0] / shape[1])
        if not mask.any():
            raise InputError(
                f"{path}: its polygons cover nothing of the slide of {slide.size[0]} x {slide.size[1]} pixels; pixels "
                "at level 0 were expected, not micrometres or those of a thumbnail"
            )
        return mask


def given_of(coordinates: str | None, masks: str | None) -> Given:
    """Return what the flags name. InputError where a folder is none."""
    for flag, folder in (("--coordinates", coordinates), ("--masks", masks)):
        if folder and not Path(folder).is_dir():
            raise InputError(f"{flag} {folder}: no such folder; a folder with a file per slide was expected")
    return Given(*(Path(folder).absolute() if folder else None for folder in (coordinates, masks)))


def _find(folder: Path, names: tuple[str, ...], key: str, kind: str) -> Path:
    """Return the slide's file in `folder`, or in a sub-folder patches of it."""
    wanted = [name.format(key) for name in names]
    for place in (folder, folder / "patches"):
        for name in wanted:
            if (place / name).is_file():
                return place / name
    raise InputError(
        f"{folder}: no {kind} of {key}: {' or '.join(wanted)} was expected; add the file, or leave the slide out"
    )
