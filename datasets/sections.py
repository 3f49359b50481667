"""Sections of spatial transcriptomics: an image, spots with places in it, counts per spot; and the ST layout on disk.

ST (Stahl et al. 2016; her2st, Andersson et al. 2021): `images/<section>.jpg`, `counts/<section>.tsv.gz` (spots in rows,
named XxY on the array; symbols in columns) and `spots/<section>_selection.tsv` (x, y on the array; pixel_x, pixel_y in
the image; selected). The 10x layout is read by datasets/visium.py.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from common.errors import InputError, shorten
from common.memory import free_memory
from datasets.matrices import read_matrix
from datasets.slides import Slide, UnreadableRegion, check_mpp
from datasets.text import guess_delimiter, open_text, split_line

TABLE_SUFFIX = re.compile(r"\.(tsv|csv|txt)(\.gz)?$")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")  # read with Pillow, whole; other forms with OpenSlide where it can
PLACES = re.compile(r"(\d+)x(\d+)$")
NEEDED = ("x", "y", "pixel_x", "pixel_y")
SKEW = 0.1  # by how much the array's two directions may differ in pixels; real ones: 0.01; ours


@dataclass
class Section:
    """One section. `spots` has a row per spot that has a place; `counts` a row per spot that was sequenced."""

    name: str
    image: Path
    spots: pd.DataFrame  # index: spot; array_x, array_y; u, v (units of the pitch); x, y (pixels); on_tissue
    counts: sparse.csr_matrix  # (sequenced spots, genes in the file), raw
    counted: list[str]  # the spots of the rows of `counts`
    genes: list[str]  # of its columns, as named in the file
    source: Path  # the file of the counts, for messages
    symbols: dict[str, str] = field(default_factory=dict)  # gene as named -> symbol, where the file tells
    pitch_um: float | None = None  # between neighbouring spots, where the technique fixes it
    spot_px: float | None = None  # a spot's diameter in the image, where a file states it
    off_tissue: str = "not selected"  # what it is called in the report


def find_mpp(section: Section, mpp: float | None, pitch_um: float | None) -> tuple[float, str]:
    """Return (micrometres per pixel of the image, how it was found): --mpp, else the array's pitch in pixels.

    The pitch in pixels is the geometric mean of the singular values of the affine map, fitted by least squares, from
    places on the array (u, v, units of the pitch) to pixels. InputError where there is neither, or no regular array.
    """
    if mpp is not None:
        return check_mpp(mpp, "--mpp"), "--mpp"
    if (um := pitch_um or section.pitch_um) is None:
        raise InputError(
            f"{section.image}: how many micrometres its pixels cover is stated nowhere; give --mpp, or --pitch, the um "
            "between neighbouring spots (200 for ST), from which it follows"
        )
    places = np.column_stack([section.spots[["u", "v"]].to_numpy(float), np.ones(len(section.spots))])
    fitted, _, rank, _ = np.linalg.lstsq(places, section.spots[["x", "y"]].to_numpy(float), rcond=None)
    steps = np.linalg.svd(fitted[:2], compute_uv=False) if rank == 3 else np.zeros(2)  # pixels per pitch
    if steps[1] <= 0 or steps[0] / steps[1] > 1 + SKEW:
        raise InputError(
            f"{section.source}: the {len(section.spots)} spots of section {section.name} lie on no regular array "
            f"(steps of {steps[0]:.1f} and {steps[1]:.1f} px), so that no pixel size follows; check the "
            "places, or give --mpp"
        )
    pixels = float(np.sqrt(steps.prod()))
    return check_mpp(um / pixels, f"{section.image}: from a pitch of {um:g} um"), f"{um:g} um are {pixels:.2f} px"


# ---- The image ----


class Picture:
    """An image opened for cutting squares; `size` is (width, height) and costs no decoding."""

    def __init__(self, path: Path, handle: Image.Image | Slide) -> None:
        self.path, self._handle = path, handle
        self.size: tuple[int, int] = handle.size

    def square(self, left: int, top: int, side: int) -> np.ndarray:
        """Return uint8 RGB (side, side, 3) from pixel (left, top) on. InputError where the file is damaged."""
        try:
            if isinstance(self._handle, Slide):
                return self._handle.read_region(left, top, 0, (side, side))
            return np.asarray(self._handle.crop((left, top, left + side, top + side)).convert("RGB"))
        except (UnreadableRegion, OSError, SyntaxError, ValueError) as error:
            raise _unreadable(self.path, error) from None


@contextmanager
def open_picture(path: Path) -> Iterator[Picture]:
    """Open a section's image: JPEG and PNG with Pillow; TIFF and slides with OpenSlide, plain TIFF with Pillow."""
    if not path.is_file():
        raise InputError(f"{path}: no such image; check the path")
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        try:
            slide = Slide(path)
        except InputError:
            pass  # no pyramid: Pillow reads it, or says why not
        else:
            with slide:
                yield Picture(path, slide)
            return
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # sections are larger than Pillow expects of pictures
    try:
        try:
            image = Image.open(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from None
        with image:
            if (size := 4 * image.width * image.height) > free_memory():
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels need {size:,} bytes, more than this machine has "
                    "free; export the image with fewer, or as a pyramid"
                )
            if image.mode not in ("RGB", "RGBA", "L", "P", "CMYK", "YCbCr"):
                raise InputError(f"{path}: pixels of kind {image.mode}, 8-bit colour was expected; convert the image")
            yield Picture(path, image)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: not a readable image ({str(error)[:80]}); copy or export it again")


# ---- The ST layout ----


def read_st(folder: str | Path) -> list[Section]:
    """Return the sections of an ST folder, sorted by name. InputError names the file that a section lacks."""
    folder = Path(folder)
    parts = {kind: _files(folder, kind) for kind in ("images", "counts", "spots")}
    names = sorted(set().union(*parts.values()))
    if not names:
        raise InputError(f"{folder}: images/, counts/ and spots/ are empty; one file of each per section was expected")
    for name in names:
        for kind, form in (("images", "jpg"), ("counts", "tsv.gz"), ("spots", "tsv")):
            if name not in parts[kind]:
                file = f"{name}_selection" if kind == "spots" else name
                raise InputError(
                    f"{folder / kind / file}.{form}: missing: section {name} has an image, counts and spots, each "
                    "under its name; add it, or move the section's other files away"
                )
    return [_read_section(name, *(parts[kind][name] for kind in ("images", "counts", "spots"))) for name in names]


def _files(folder: Path, kind: str) -> dict[str, Path]:
    """Return section -> file of one kind."""
    if not (folder / kind).is_dir():
        raise InputError(
            f"{folder}: no folder {kind}/ in it; a folder with images/, counts/ and spots/ was expected, or folders of "
            "10x Visium with spatial/ and a *filtered_feature_bc_matrix.h5"
        )
    found: dict[str, Path] = {}
    for path in sorted((folder / kind).glob("[!.]*")):
        if kind == "images":
            name = path.stem
        elif not TABLE_SUFFIX.search(path.name):
            continue
        else:
            name = TABLE_SUFFIX.sub("", path.name)
        name = name.removesuffix("_selection") if kind == "spots" else name
        if name in found:
            raise InputError(f"{found[name]} and {path}: two files of section {name}, one was expected; remove one")
        found[name] = path
    return found


def _read_section(name: str, image: Path, counts: Path, spots: Path) -> Section:
    matrix = read_matrix(counts, "columns", genes_alone=True)
    if twice := pd.Index(matrix.samples)[pd.Index(matrix.samples).duplicated()].tolist():
        raise InputError(f"{counts}: spot {twice[0]} stands twice, each was expected once; remove one of its rows")
    if matrix.stats.lowest < 0 or not matrix.stats.whole:
        raise InputError(f"{counts}: values that are no counts (negative, or not whole); raw counts were expected")
    counted = [normal_place(spot) for spot in matrix.samples]
    return Section(name, image, _read_places(spots), sparse.csr_matrix(matrix.values), counted, matrix.genes, counts)


def normal_place(name: str) -> str:
    """Return a spot's name without leading zeros and blanks: " 09x10" -> "9x10"; other names as they are."""
    match = PLACES.match(name.strip())
    return f"{int(match[1])}x{int(match[2])}" if match else name


def _read_places(path: Path) -> pd.DataFrame:
    with open_text(path) as file:
        delimiter = guess_delimiter(first := file.readline())
        header = split_line(first, delimiter)
        if missing := [column for column in NEEDED if column not in header]:
            raise InputError(
                f"{path}: no column {missing[0]} (found {shorten(header, 7)}); x and y on the array, pixel_x and "
                "pixel_y in the image were expected"
            )
        at = [header.index(column) for column in NEEDED]
        chosen = header.index("selected") if "selected" in header else None
        line_of: dict[str, int] = {}
        rows = []
        for line, text in enumerate(file, start=2):
            fields = split_line(text, delimiter)
            if not any(fields):
                continue
            x, y, pixel_x, pixel_y = (_number(path, line, header, fields, i) for i in at)
            spot = f"{round(x)}x{round(y)}"
            if spot in line_of:
                raise InputError(
                    f"{path}: line {line}: spot {spot} stands on line {line_of[spot]} too, each was expected once; "
                    "remove one"
                )
            line_of[spot] = line
            on_tissue = chosen is None or _number(path, line, header, fields, chosen) != 0
            rows.append((round(x), round(y), x, y, pixel_x, pixel_y, on_tissue))
    if not rows:
        raise InputError(f"{path}: no line below the header; one line per spot was expected")
    columns = ["array_x", "array_y", "u", "v", "x", "y", "on_tissue"]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(list(line_of), dtype=object))


def _number(path: Path, line: int, header: list[str], fields: list[str], column: int) -> float:
    text = fields[column] if column < len(fields) else ""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(
            f"{path}: line {line}, column {header[column]}: {text!r}, a number was expected; mend the file"
        )
    return value
