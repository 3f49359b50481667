"""Aperio slides whose tiles are plain JPEG, decoded without OpenSlide: the same pixels, without RGBA and its copies.

OpenSlide still opens the file and says what its levels are. Whatever is out of the ordinary is left to it: other
formats and compressions, tiles that are missing, and JPEGs that are cut short or cannot be decoded.
"""

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CACHE_BYTES = 12 << 20  # decoded tiles that are kept, as neighbours share them: some three rows of an overview's level
JPEG = 7  # TIFF's number of the compression, and of two of its colour models
COLOURS = {2: "RGB", 6: "YCBCR"}


class NotDirect(Exception):
    """Why a slide, or a part of it, is left to OpenSlide."""


@dataclass
class _Level:
    width: int  # pixels
    height: int
    tile: tuple[int, int]  # height, width
    across: int  # tiles
    spans: np.ndarray  # (tiles, 2) offset and length in the file
    tables: bytes | None  # of quantisation and Huffman codes, which the tiles share
    colours: str


class DirectTiles:
    """The levels of one open slide. Close it when done."""

    def __init__(self, path: Path, handle: Any) -> None:
        """Find the levels that OpenSlide's `handle` of the file has. NotDirect says what is out of the ordinary.

        One tile of each level is decoded both ways: where a pixel differs, that is out of the ordinary too.
        """
        if handle.properties.get("openslide.vendor") != "aperio":
            raise NotDirect("no Aperio slide")
        try:
            self._levels = _find_levels(path, handle.level_dimensions)
        except NotDirect:
            raise
        except Exception as error:  # a short cut that is not open must not cost the slide; the reason is reported
            raise NotDirect(f"{type(error).__name__}: {str(error)[:80]}") from None
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached = 0  # bytes
        self._file = os.open(path, os.O_RDONLY)
        try:
            self._compare(handle)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def read(self, x: int, y: int, level: int, size: tuple[int, int], outside: int) -> np.ndarray:
        """Return `size` (width, height) pixels of a level from its pixel (x, y), as uint8 RGB, perhaps read-only.

        What lies outside the slide has the value `outside`. NotDirect where OpenSlide has to read it.
        """
        this, (width, height) = self._levels[level], size
        rows, columns = this.tile
        if x % columns == 0 and y % rows == 0 and (height, width) == this.tile:
            whole = 0 <= x <= this.width - width and 0 <= y <= this.height - height
            if whole:  # nobody else needs it: not kept
                return self._decode(level, y // rows * this.across + x // columns)
        out = np.empty((height, width, 3), np.uint8)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, this.width), min(y + height, this.height)
        if (x0, y0, x1, y1) != (x, y, x + width, y + height):
            out[:] = outside
        for top in range(y0 // rows * rows, y1, rows):
            for left in range(x0 // columns * columns, x1, columns):
                a, b = max(y0, top), min(y1, top + rows)
                c, d = max(x0, left), min(x1, left + columns)
                if a < b and c < d:
                    tile = self._tile(level, top // rows * this.across + left // columns)
                    out[a - y : b - y, c - x : d - x] = tile[a - top : b - top, c - left : d - left]
        return out

    def forget(self) -> None:
        """Free the decoded tiles that are kept."""
        self._cache.clear()
        self._cached = 0

    def _tile(self, level: int, number: int) -> np.ndarray:
        """Return one tile (rows, columns, 3), decoded or remembered; read-only."""
        if (tile := self._cache.get((level, number))) is not None:
            self._cache.move_to_end((level, number))
            return tile
        tile = self._decode(level, number)
        tile.flags.writeable = False
        self._cache[level, number] = tile
        self._cached += tile.nbytes
        while self._cached > CACHE_BYTES:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, level: int, number: int) -> np.ndarray:
        from imagecodecs import Jpeg8Error, jpeg8_decode

        this = self._levels[level]
        offset, length = this.spans[number].tolist()
        data = os.pread(self._file, length, offset)
        if len(data) < length or data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
            raise NotDirect("a tile is cut short")
        try:
            tile = np.empty((*this.tile, 3), np.uint8)  # a picture of another size is refused before it is decoded
            jpeg8_decode(data, tables=this.tables, colorspace=this.colours, outcolorspace="RGB", out=tile)
        except (Jpeg8Error, ValueError) as error:
            raise NotDirect(f"a tile cannot be decoded ({error})") from None
        return tile

    def _compare(self, handle: Any) -> None:
        for level, this in enumerate(self._levels):
            rows, columns = this.tile
            number = len(this.spans) // 2
            x, y = number % this.across * columns, number // this.across * rows
            if handle.level_downsamples[level] != 1 and (x or y):
                number, x, y = 0, 0, 0  # elsewhere level-0 pixels need not fall on this level's
            height, width = min(rows, this.height - y), min(columns, this.width - x)
            theirs = np.asarray(handle.read_region((x, y), level, (width, height)))
            if not np.array_equal(theirs[..., :3], self._tile(level, number)[:height, :width]):
                raise NotDirect(f"level {level} decoded directly differs from what OpenSlide reads")


def _find_levels(path: Path, sizes: tuple[tuple[int, int], ...]) -> list[_Level]:
    import tifffile

    found = []
    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if page.is_tiled]
        for width, height in sizes:
            page = next((p for p in pages if (p.imagewidth, p.imagelength) == (width, height)), None)
            if page is None:
                raise NotDirect(f"no level of {width} x {height} pixels found in the file")
            plain = page.compression == JPEG and page.planarconfig == 1 and page.imagedepth == 1
            if not plain or page.bitspersample != 8 or page.samplesperpixel != 3 or page.photometric not in COLOURS:
                raise NotDirect(f"its tiles are {page.compression.name}, {page.photometric.name}")
            across, down = -(-width // page.tilewidth), -(-height // page.tilelength)
            spans = np.array([page.dataoffsets, page.databytecounts], np.int64).T
            if len(spans) != across * down or not spans[:, 1].all():
                raise NotDirect("tiles are missing")
            tile = (page.tilelength, page.tilewidth)
            colours = COLOURS[page.photometric]
            found.append(_Level(width, height, tile, across, spans, page.jpegtables, colours))
    return found
