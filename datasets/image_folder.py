"""Folders of pictures: what the manifests of generated tiles list, else every PNG and JPEG."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json
from datasets.tiles import area_resize, decode_image

# Of a generated tile: the GAN's checkpoint, its digest, the noise's seed.
MAKER = ("made_by", "made_digest", "made_seed")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image_folder(folder: str | Path) -> list[Path]:
    """Return the PNG and JPEG files under `folder`, sorted; only those that manifests list where there are some.

    A manifest.json in `folder` itself decides, else those in its sub-folders, as `generated_folders` finds them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures; check the path")
    if (places := generated_folders(folder)) and places != [folder]:
        return [path for place in places for path in read_image_folder(place)]
    if (folder / "manifest.json").exists():
        listed = [folder / tile["file"] for tile in manifest_tiles(folder / "manifest.json") or []]
        if missing := [path for path in listed if not path.exists()]:
            raise InputError(f"{missing[0]}: missing, though manifest.json lists it; generate the tiles again")
        if listed:
            return listed
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: no PNG or JPEG in it; expected a folder of tiles")
    return found


def generated_folders(folder: Path) -> list[Path]:
    """Return the folders with a manifest of generated tiles, `folder` or in it, sorted; none that lies in another.

    Folders inside a folder of generated tiles (second/, real/) hold what it is compared with, not more of its tiles.
    """
    places = {path.parent for path in folder.rglob("manifest.json") if manifest_tiles(path) is not None}
    return sorted(place for place in places if not places & set(place.parents))


def manifest_tiles(path: Path) -> list[dict[str, Any]] | None:
    """Return what a manifest of generated tiles lists, [{"file": ...}, ...]; None for a JSON file of another kind."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("tiles"), list):
        return None
    return [tile for tile in content["tiles"] if isinstance(tile, dict) and "file" in tile]


def maker_of(made_from: object) -> tuple[str, str, str]:
    """Return MAKER as a manifest's `made_from` has it; "" for what it does not say."""
    said = made_from if isinstance(made_from, dict) else {}
    checkpoint, digest, seed = (said.get(key) for key in ("checkpoint", "digest", "seed"))
    if not isinstance(checkpoint, str) or not checkpoint:
        return "", "", ""
    return checkpoint, digest if isinstance(digest, str) else "", "" if seed is None else str(seed)


def read_image(path: str | Path, img_size: int | None = None) -> np.ndarray:
    """Return a PNG or JPEG as uint8 RGB (H, W, 3); with `img_size`, its central square area-resized to that side."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such picture; check the path")
    image = decode_image(path.read_bytes(), str(path))
    if img_size is None:
        return image
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return area_resize(image[top : top + side, left : left + side], img_size)
