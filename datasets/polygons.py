"""Outlines of tissue that another tool drew: GeoJSON of QuPath or TRIDENT, and the mask that they make."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common.errors import InputError
from common.files import read_json

Ring = np.ndarray  # (n, 2) x, y in level-0 pixels
Polygon = list[Ring]  # outline, then holes


def read_polygons(path: str | Path) -> list[Polygon]:
    """Return the polygons of a GeoJSON file, in pixels at level 0; points and lines in it are passed over.

    Takes a FeatureCollection, a list of features, one feature, or a bare geometry. InputError where it is not JSON
    (line and column), a ring is not one, or there is no polygon.
    """
    try:
        polygons = [
            p for number, shape in enumerate(_geometries(read_json(path), path)) for p in _parts(shape, number, path)
        ]
    except RecursionError:
        raise InputError(f"{path}: geometries nested too deeply; export the tissue's outlines again") from None
    if not polygons:
        raise InputError(
            f"{path}: no Polygon or MultiPolygon in it; export the tissue's outlines as GeoJSON, in pixels at level 0"
        )
    return polygons


def mask_of(polygons: list[Polygon], shape: tuple[int, int], scale: float) -> np.ndarray:
    """Return bool (h, w) of `shape`: pixels inside a polygon and none of its holes; a pixel is `scale` level-0 ones.

    What lies outside `shape` is cut off. A pixel counts where its centre is inside, to within a pixel.
    """
    mask = np.zeros(shape, bool)
    for outline, *holes in polygons:
        low = np.clip(np.floor(outline.min(0) / scale).astype(int), 0, shape[::-1])  # x, y of the box around it
        high = np.clip(np.ceil(outline.max(0) / scale).astype(int) + 1, 0, shape[::-1])
        if (high <= low).any():
            continue
        box = Image.new("1", tuple(int(n) for n in high - low))
        draw = ImageDraw.Draw(box)
        for ring, fill in ((outline, 1), *((hole, 0) for hole in holes)):
            draw.polygon([tuple(xy) for xy in (ring / scale - low - 0.5).tolist()], fill=fill)
        mask[low[1] : high[1], low[0] : high[0]] |= np.asarray(box)
    return mask


def _geometries(content: Any, path: str | Path) -> Iterator[Any]:
    """Yield the geometry of each feature."""
    if isinstance(content, list):
        features = content
    elif isinstance(content, dict) and content.get("type") == "FeatureCollection":
        features = content.get("features")
    else:
        features = [content]
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise InputError(f"{path}: a GeoJSON FeatureCollection, or a list of features, was expected; export it again")
    yield from (feature.get("geometry") if "geometry" in feature else feature for feature in features)


def _parts(shape: Any, number: int, path: str | Path) -> list[Polygon]:
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind == "GeometryCollection":
        return [polygon for part in shape.get("geometries") or [] for polygon in _parts(part, number, path)]
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    listed = shape.get("coordinates")
    polygons = [listed] if kind == "Polygon" else listed
    try:
        found = [[np.array([point[:2] for point in ring], float) for ring in polygon] for polygon in polygons]
    except (TypeError, ValueError, KeyError, IndexError):
        found = [[np.zeros(0)]]
    for polygon in found:
        if not polygon or any(ring.ndim != 2 or len(ring) < 3 or not _finite(ring) for ring in polygon):
            raise InputError(
                f"{path}: feature {number + 1}: a {kind} of rings of at least 3 points (x, y) was expected; export it "
                "again"
            )
    return found


def _finite(ring: Ring) -> bool:
    return math.isfinite(float(np.abs(ring).sum()))
