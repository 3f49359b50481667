"""Whole slides through OpenSlide: which files are slides, their micrometres per pixel, regions of them as RGB."""

import contextlib
import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import InputError, shorten
from datasets.keys import SLIDE_SUFFIXES, slide_key
from datasets.svs import DirectTiles, NotDirect
from datasets.tiles import area_resize

MPP_RANGE = (0.05, 10.0)  # micrometres per pixel beyond which a value is a mistake (0.1: 100x oil, 4: 2.5x); ours
NEAR = 0.01  # pixels that differ less than this in size are read as they are: resampling would only blur; ours
SMALLEST_PART = 8  # pixels of an overview, down to which the parts around a damaged place are read
LARGEST_READ = 512  # pixels per side of one read_region, which takes 8 bytes per pixel on the way


class UnreadableRegion(Exception):
    """A part of the slide's file is damaged; the rest may still be readable."""


@dataclass
class Scale:
    """How tiles are read from a slide: `side` pixels of pyramid level `level`, which lie `downsample` apart."""

    level: int
    downsample: float  # level-0 pixels per pixel of the level
    side: int  # pixels of the level that make one tile, before resizing
    mpp: float  # effective micrometres per pixel of the tile
    step: float  # level-0 pixels from tile to tile


class Slide:
    """One open slide; `size` is (width, height) at level 0. Close it, or use it in a `with` block.

    `reader` says how pixels are read: "direct" (plain JPEG tiles), or "OpenSlide" and why.
    """

    def __init__(self, path: str | Path) -> None:
        """Open `path`; InputError says what is wrong with a file that OpenSlide cannot read."""
        import openslide

        self.path = Path(path)
        self.key = slide_key(self.path.name)
        self._handle = _open(self.path)
        self.size: tuple[int, int] = self._handle.dimensions
        self.downsamples: tuple[float, ...] = self._handle.level_downsamples
        self._direct, self.reader = None, "direct"
        try:
            self._direct = DirectTiles(self.path, self._handle)
        except NotDirect as why:
            self.reader = f"OpenSlide: {why}"
        except openslide.OpenSlideError as error:
            self.reader = f"OpenSlide: {str(error)[:80]}"
            self._open_again()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        if self._direct is not None:
            self._direct.close()

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level, pixels."""
        return self._handle.level_dimensions

    @property
    def power(self) -> float | None:
        """Magnification that an Aperio file states (AppMag), None where it states none: a name, not a measure."""
        try:
            return float(self._handle.properties["aperio.AppMag"])
        except (KeyError, ValueError):
            return None

    @property
    def own_mpp(self) -> float | None:
        """Micrometres per pixel that the file states, None where it states none (a magnification is not one)."""
        found = []
        for axis in ("x", "y"):
            try:
                found.append(float(self._handle.properties[f"openslide.mpp-{axis}"]))
            except (KeyError, ValueError):
                return None
        if not all(map(math.isfinite, found)) or min(found) <= 0:
            return None
        if abs(found[0] / found[1] - 1) > 0.05:
            raise InputError(f"{self.path}: {found[0]:g} um per pixel across, {found[1]:g} down: not square pixels")
        return sum(found) / 2

    def scale_for(self, slide_mpp: float, target_mpp: float, tile_size: int) -> Scale:
        """Return how to read tiles of `tile_size` pixels at `target_mpp`: the coarsest level that is fine enough."""
        ratio = target_mpp / slide_mpp  # level-0 pixels per tile pixel
        if ratio < 0.8:
            raise InputError(f"{self.path}: {slide_mpp:g} um per pixel is too coarse for --mpp {target_mpp:g}")
        level = max((i for i, d in enumerate(self.downsamples) if d <= ratio * (1 + NEAR)), default=0)
        downsample = self.downsamples[level]
        side = tile_size if abs(ratio / downsample - 1) < NEAR else round(tile_size * ratio / downsample)
        return Scale(level, downsample, side, side * downsample * slide_mpp / tile_size, side * downsample)

    def read_tile(self, x: int, y: int, scale: Scale, tile_size: int) -> np.ndarray:
        """Return the tile whose corner is (x, y) at level 0, as uint8 RGB (tile_size, tile_size, 3)."""
        return area_resize(self.read_region(x, y, scale.level, (scale.side, scale.side)), tile_size)

    def read_region(self, x: int, y: int, level: int, size: tuple[int, int], outside: int = 255) -> np.ndarray:
        """Return `size` (width, height) pixels of a level from (x, y) at level 0, as uint8 RGB, perhaps read-only.

        What lies outside the slide has the value `outside`. UnreadableRegion where the file is damaged there; the slide
        is opened again, so that other regions can be read.
        """
        import openslide

        place = x / self.downsamples[level], y / self.downsamples[level]
        if self._direct is not None and place[0].is_integer() and place[1].is_integer():  # else pixels are mixed
            with contextlib.suppress(NotDirect):
                return self._direct.read(int(place[0]), int(place[1]), level, size, outside)
        try:
            rgba = np.asarray(self._handle.read_region((x, y), level, size))  # (H, W, 4)
        except openslide.OpenSlideError as error:
            self._open_again()
            raise UnreadableRegion(str(error)[:120]) from None
        if rgba[..., 3].min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        return np.where(rgba[..., 3:] == 0, np.uint8(outside), rgba[..., :3])

    @property
    def rows_at_a_time(self) -> int | None:
        """How many rows of the coarsest level `read_rows` is to be asked for: all, or None for any number."""
        return None if self._direct is not None or self.downsamples[-1] == 1 else self.level_sizes[-1][1]

    def read_rows(self, first: int, rows: int) -> np.ndarray:
        """Return rows of the coarsest level, uint8 RGB (rows, its width, 3). InputError where they are damaged."""
        level, width = len(self.downsamples) - 1, self.level_sizes[-1][0]
        try:
            if self._direct is not None:
                return self._direct.read(0, first, level, (width, rows), 0)
            return self.read_region(0, round(first * self.downsamples[level]), level, (width, rows), 0)
        except (NotDirect, UnreadableRegion) as error:
            raise InputError(f"{self.path}: its coarsest level is damaged ({error}); copy the slide again") from None

    def _open_again(self) -> None:
        self._handle.close()  # after one error a handle refuses everything
        self._handle = _open(self.path)

    def overview(self, width: int) -> tuple[np.ndarray, int]:
        """Return the slide as uint8 RGB (h, width, 3), and how many of its parts were unreadable (left white).

        Read in parts from the coarsest level that is fine enough, so memory does not grow with the slide; between other
        parts, a pixel of the level whose centre is on the border of two falls to the other one.
        """
        step = self.size[0] / width  # level-0 pixels per pixel of the overview
        height = max(1, round(self.size[1] / step))
        level = max((i for i, d in enumerate(self.downsamples) if d <= step * (1 + NEAR)), default=0)
        ratio = step / self.downsamples[level]
        across, down = (max(n, round(n * ratio)) / n for n in (width, height))  # pixels of the level per pixel
        part = max(1, int(LARGEST_READ / ratio))  # overview pixels per part
        image, unreadable = np.full((height, width, 3), 255, np.uint8), 0
        parts = [(top, left, part) for top in range(0, height, part) for left in range(0, width, part)]
        while parts:
            top, left, part = parts.pop()
            h, w = min(part, height - top), min(part, width - left)
            if h <= 0 or w <= 0:
                continue
            x0, x1, y0, y1 = left * across, (left + w) * across, top * down, (top + h) * down
            x, y = int(x0), int(y0)
            try:
                region = Image.fromarray(self._read_level(x, y, level, (math.ceil(x1) - x, math.ceil(y1) - y)))
                covered = (x0 - x, y0 - y, min(x1 - x, region.width), min(y1 - y, region.height))
                image[top : top + h, left : left + w] = region.resize((w, h), Image.Resampling.BOX, covered)
            except UnreadableRegion:
                half = part // 2
                if half < SMALLEST_PART:
                    unreadable += 1
                else:  # go round the damage
                    parts += [(top + i, left + j, part - half) for i in (0, half) for j in (0, half)]
        if self._direct is not None:
            self._direct.forget()  # tiles of another level are to be cut
        return image, unreadable

    def _read_level(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """Return what `read_region` does, from pixel (x, y) of the level: where it is direct, no pixels are mixed."""
        if self._direct is not None:
            with contextlib.suppress(NotDirect):
                return self._direct.read(x, y, level, size, 255)
        return self.read_region(round(x * self.downsamples[level]), round(y * self.downsamples[level]), level, size)


def find_slides(path: str | Path) -> list[Path]:
    """Return the slides of a folder (and of its sub-folders), or the one file, sorted by key.

    InputError where there is none, or where two files would share one key and so one store.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of slides; check the path")
    found = [p for p in path.rglob("*") if p.name.lower().endswith(SLIDE_SUFFIXES) and p.is_file()]
    found = sorted((p for p in found if not p.name.startswith(".")), key=lambda p: (slide_key(p.name), str(p)))
    if not found:
        raise InputError(f"{path}: no slide in it; expected files that end in {shorten(SLIDE_SUFFIXES, 8)}")
    for one, other in itertools.pairwise(found):
        if slide_key(one.name) == slide_key(other.name):
            raise InputError(f"{one} and {other}: two slides with one name; rename or remove one of them")
    return found


def read_mpp_table(path: str | Path) -> dict[str, float]:
    """Return slide key -> micrometres per pixel from a CSV with columns slide (or wsi_file_name) and mpp."""
    import pandas as pd  # slow to load, and the processes that cut need no table

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.split("\n", 1)[0]
        separator = next((s for s in (";", "\t") if s in head), ",")
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, sep=separator)
    except FileNotFoundError:
        raise InputError(f"{path}: no such table; --mpp_table expects a CSV with columns slide, mpp") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV ({str(error)[:80]}); expected columns slide, mpp") from None
    name = next((c for c in ("slide", "wsi_file_name", "wsi_file_names") if c in table.columns), None)
    if name is None or "mpp" not in table.columns:
        raise InputError(f"{path}: columns slide and mpp were expected, found {shorten(table.columns)}; rename them")
    found: dict[str, float] = {}
    for row, (slide, text) in enumerate(zip(table[name], table["mpp"], strict=True), start=2):
        key = slide_key(slide)
        if key in found:
            raise InputError(f"{path}: row {row}, column {name}: {slide} stands there twice; keep one row of it")
        where = f"{path}: row {row}, column mpp"
        try:
            found[key] = check_mpp(float(text), where)
        except ValueError:
            raise InputError(f"{where}: {text!r} is no number; write the micrometres per pixel of {slide}") from None
    return found


def check_mpp(mpp: float, where: str) -> float:
    """Return `mpp` where it is a plausible number of micrometres per pixel; InputError names `where` otherwise."""
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise InputError(f"{where}: {mpp:g}; expected micrometres per pixel, {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}")
    return mpp


def resolve_mpp(slide: Slide, from_table: float | None, from_flag: float | None) -> tuple[float, str]:
    """Return (um per pixel, "table", "file" or "flag"): the slide's line in the table, else the file, else the flag.

    InputError names both flags where none of them says it, or where the file's own value cannot be true.
    """
    if from_table is not None:
        return from_table, "table"
    own = slide.own_mpp
    if own is not None and MPP_RANGE[0] <= own <= MPP_RANGE[1]:
        return own, "file"
    if from_flag is not None:
        return from_flag, "flag"
    what = "the file states no mpp" if own is None else f"the file states {own:g} um per pixel, which cannot be true"
    raise InputError(
        f"{slide.path}: {what}; give --slide_mpp X (micrometres per pixel at level 0, for all slides without one) "
        "or --mpp_table CSV (columns slide, mpp)"
    )


def _open(path: Path) -> Any:
    import openslide

    if not path.exists():
        raise InputError(f"{path}: no such slide; check the path")
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        head = path.read_bytes()[:512] if path.stat().st_size < 1 << 20 else b""
        if path.stat().st_size == 0:
            what = "the file is empty"
        elif head.lstrip()[:1] == b"<":
            what = "the file is a web page, not a slide"
        else:
            what = f"OpenSlide cannot read it ({str(error)[:100]}): cut short, damaged, or not a slide"
        raise InputError(f"{path}: {what}; download or copy it again") from None
