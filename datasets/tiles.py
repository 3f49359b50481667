"""Tiles: the store on disk, and the two conversions between pixels and the networks' numbers.

A store is one slide: `<slide>.tar`, uncompressed, with one JPEG or PNG per tile, and `<slide>.json` with the slide's
name, micrometres per pixel, tile side, level-0 coordinates, tissue fractions and other scores, and each member's
offset, length and CRC32. The JSON is written last and seals the tar: a tar without it was cut short. Tiles are uint8,
RGB, HWC; in the networks they are float32 in [-1, 1], NCHW. Nothing else in the toolkit converts between the two.
"""

import functools
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import InputError
from common.files import atomic_path, read_json, sha256_of

if TYPE_CHECKING:  # torch takes seconds to import, and nothing that cuts or verifies tiles needs it
    import torch

FORMAT = "tile store 1"
SUFFIX = {"jpeg": ".jpg", "png": ".png"}
MPP_TOLERANCE = 0.02  # relative difference of the tiles' side in micrometres that still counts as equal; ours
REMEDY = "delete it and run prepare_data.py tiles again"

ROWS_IN_MEMORY = 1 << 20  # bytes of a store's rows while it is written; more of them wait in a file
COLUMNS = ["x", "y", "tissue", "offset", "length", "crc32", "file"]  # of a tile; its further scores follow


class Tile(NamedTuple):
    """One tile to store, and by what it was judged: numbers by which a reader may choose. A plain tuple does too."""

    x: int | None  # at level 0; None: not known, as of an imported store
    y: int | None
    tissue: float | None  # share of it; None: not known
    image: np.ndarray  # uint8 (H, W, 3)
    scores: dict[str, float] = {}  # noqa: RUF012 (never changed); the same names for all tiles of a store


# ---- Conversions ----


def to_model(images: np.ndarray) -> "torch.Tensor":
    """Return uint8 RGB tiles (N, H, W, 3) as float32 (N, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images: "torch.Tensor") -> np.ndarray:
    """Return float tiles (N, 3, H, W) in [-1, 1] (values beyond are clipped) as uint8 RGB (N, H, W, 3)."""
    import torch

    pixels = images.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def area_resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Return a uint8 image (H, W, C) as (size, size, C) or (h, w, C), each pixel the mean of the area that it covers.

    Exact for every ratio; enlarging is bicubic.
    """
    before = image.shape[:2]
    after = (size, size) if isinstance(size, int) else size
    if before == after:
        return image
    if after[0] > before[0] or after[1] > before[1]:
        return np.asarray(Image.fromarray(image).resize(after[::-1], Image.Resampling.BICUBIC))
    if before[0] % after[0] == 0 and before[1] % after[1] == 0:
        return np.asarray(Image.fromarray(image).reduce((before[1] // after[1], before[0] // after[0])))
    rows = _coverage(before[0], after[0]) @ image.reshape(before[0], -1).astype(np.float32)  # (h, W * C)
    mean = np.tensordot(_coverage(before[1], after[1]), rows.reshape(after[0], before[1], -1), (1, 1))  # (w, h, C)
    return np.clip(np.rint(mean.swapaxes(0, 1)), 0, 255).astype(np.uint8, order="C")


@functools.lru_cache(maxsize=16)
def _coverage(n_in: int, n_out: int) -> np.ndarray:
    """Return (n_out, n_in) float32: the share of each output pixel that an input pixel covers; rows sum to 1."""
    edges = np.linspace(0, n_in, n_out + 1)
    pixel = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * n_out / n_in).astype(np.float32)


# ---- The store ----


def write_store(
    folder: str | Path,
    slide: str,
    tiles: Iterable[Tile | tuple],
    *,
    mpp: float,
    tile_size: int,
    fmt: str = "jpeg",
    quality: int = 95,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write `<folder>/<slide>.tar` and `.json`, whole or not at all; return the JSON's path.

    `slide` is the slide's key (no suffix), `mpp` the tiles' micrometres per pixel, `tile_size` their side in pixels.
    `fmt` is "jpeg" (4:4:4 at `quality`) or "png" (lossless); `extra` is kept in the JSON, as it stands when the last
    tile was taken. Tiles are taken one by one. Equal input gives equal bytes. An earlier store of the slide is
    replaced only once the new one is complete.
    """
    if fmt not in SUFFIX:
        raise InputError(f"{slide}: tile format {fmt!r} is unknown; expected {' or '.join(SUFFIX)}")
    folder = Path(folder)
    sealed = folder / f"{slide}.json"
    with (
        atomic_path(sealed) as partial_json,
        atomic_path(folder / f"{slide}.tar") as partial_tar,
        tempfile.SpooledTemporaryFile(ROWS_IN_MEMORY, "w+", encoding="utf-8", dir=folder) as rows,
    ):
        scores = _write_tar(partial_tar, rows, slide, tiles, tile_size, fmt, quality)
        head = {
            "format": FORMAT,
            "slide": slide,
            "mpp": float(mpp),
            "tile_size": int(tile_size),
            "image_format": fmt,
            "quality": int(quality) if fmt == "jpeg" else None,
            "tar_bytes": partial_tar.stat().st_size,
            "tar_sha256": sha256_of(partial_tar),
            "extra": extra or {},
            "columns": COLUMNS + scores,
        }
        _write_json(partial_json, head, rows)
        sealed.unlink(missing_ok=True)  # from here until the rename the slide has no store, never a mixed one
    return sealed


def _write_tar(
    path: Path, rows: IO[str], slide: str, tiles: Iterable[Tile | tuple], tile_size: int, fmt: str, quality: int
) -> list[str]:
    """Write `rows` too, a line of JSON per tile, as COLUMNS and then the scores have it; return the scores' names."""
    names: list[str] = []
    with open(path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for index, tile in enumerate(tiles):
            x, y, tissue, image, scores = Tile(*tile)
            names = names if index else list(scores)
            if image.dtype != np.uint8 or image.shape != (tile_size, tile_size, 3):
                raise ValueError(f"{slide}: tile {index} is {image.dtype} {image.shape}, not uint8 of {tile_size} px")
            data = encode_image(image, fmt, quality)
            place = "" if x is None else f"_x{x}_y{y}"
            member = tarfile.TarInfo(f"{slide}/{index:05d}{place}{SUFFIX[fmt]}")  # the folder makes keys unique
            member.size = len(data)
            tar.addfile(member)  # its head; quicker without a file object to copy from
            tar.members.clear()  # it keeps them all
            span = [file.tell(), len(data), zlib.crc32(data), member.name]
            tar.offset += file.write(data) + file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
            corner = [None, None] if x is None else [int(x), int(y)]
            share = None if tissue is None else round(float(tissue), 4)
            row = [*corner, share, *span, *(round(float(scores[name]), 4) for name in names)]
            rows.write(json.dumps(row) + "\n")
    return names


def _write_json(path: Path, head: dict[str, Any], rows: IO[str]) -> None:
    """Write the JSON of a store; rows are read one by one, as a slide can have a hundred thousand tiles."""
    seal = hashlib.sha256(f'{json.dumps(head, sort_keys=True)[:-1]}, "tiles": ['.encode())  # the last key: see _seal
    rows.seek(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write("{\n")
        file.writelines(f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)},\n" for k, v in head.items())
        file.write('"tiles": [\n')
        for index, line in enumerate(rows):
            row = line.rstrip("\n")
            seal.update((", " if index else "").encode() + row.encode())
            file.write((",\n" if index else "") + row)
        seal.update(b"]}")
        file.write(f'\n],\n"seal": "{seal.hexdigest()}"\n}}\n')


def encode_image(image: np.ndarray, fmt: str = "jpeg", quality: int = 95) -> bytes:
    """Return a uint8 RGB image (H, W, 3) as the bytes of a JPEG (4:4:4) or PNG file."""
    if fmt == "jpeg":
        import imagecodecs

        return imagecodecs.jpeg8_encode(np.ascontiguousarray(image), level=quality, subsampling="444")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class TileStore:
    """One slide's tiles: `coords` (n, 2) level-0 pixels, `tissue` (n,) fractions, `scores` by name, `read(i)`.

    An imported store may not know them: coords are -1 then, tissue NaN.
    Holds no file open, no lock and no mapping: safe in forked workers, over network file systems, and to pickle.
    """

    def __init__(self, path: str | Path) -> None:
        """Open by the path of the JSON, the tar, or both without suffix. InputError names a damaged or unsealed one."""
        path = Path(path)
        stem = path.with_suffix("") if path.suffix in (".json", ".tar") else path
        self.json_path, self.path = (stem.with_name(stem.name + suffix) for suffix in (".json", ".tar"))
        if not self.json_path.exists():
            if self.path.exists():
                raise InputError(f"{self.path}: no {self.json_path.name} beside it: writing was cut short; {REMEDY}")
            raise InputError(f"{path}: no such tile store or folder; check the path")
        try:
            content = read_json(self.json_path)
        except InputError as error:  # nobody is to mend it by hand
            raise InputError(f"{str(error).removesuffix('; mend the JSON')}; {REMEDY}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{self.json_path}: not a tile store (format {FORMAT!r} expected); {REMEDY}")
        seal = content.pop("seal", None)
        try:
            whole = seal == _seal(content)
        except RecursionError:
            whole = False
        if not whole:
            raise InputError(f"{self.json_path}: altered or damaged since it was written; {REMEDY}")
        try:
            self._take(content)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"[:80]
            raise InputError(f"{self.json_path}: describes no tiles ({reason}); {REMEDY}") from None
        if not self.path.exists():
            raise InputError(f"{self.path}: missing, though {self.json_path.name} describes it; {REMEDY}")
        if (found := self.path.stat().st_size) != content["tar_bytes"]:
            raise InputError(f"{self.path}: {found} bytes, {content['tar_bytes']} expected: cut short; {REMEDY}")

    def _take(self, content: dict[str, Any]) -> None:
        self.slide: str = content["slide"]
        self.mpp: float = content["mpp"]
        self.tile_size: int = content["tile_size"]
        self.extra: dict[str, Any] = content["extra"]
        self.digest: str = content["tar_sha256"]
        rows = content["tiles"]
        if any(len(row) < len(content["columns"]) for row in rows):
            raise ValueError("a tile without all its columns")
        places = [(-1, -1) if row[0] is None else row[:2] for row in rows]
        self.coords = np.array(places, np.int64).reshape(-1, 2)  # (n, 2) x, y at level 0
        self.tissue = np.array([row[2] for row in rows], np.float32)  # (n,)
        further = content["columns"][len(COLUMNS) :]
        self.scores = {
            name: np.array([row[i] for row in rows], np.float32) for i, name in enumerate(further, len(COLUMNS))
        }
        self._spans = np.array([row[3:6] for row in rows], np.int64).reshape(-1, 3)  # offset, length, CRC32
        offset, length = self._spans[:, 0], self._spans[:, 1]
        if len(rows) and (min(offset.min(), length.min()) < 0 or (length > content["tar_bytes"] - offset).any()):
            raise ValueError("a tile outside of the tar")
        if not (isinstance(self.slide, str) and 0 < self.mpp < 1e6 and 0 < self.tile_size < 1 << 16):
            raise ValueError(f"slide {self.slide!r}, mpp {self.mpp!r}, tile_size {self.tile_size!r}")

    def __len__(self) -> int:
        return len(self._spans)

    def read_bytes(self, index: int) -> bytes:
        """Return tile `index` as stored (JPEG or PNG), its CRC32 checked."""
        offset, length, crc = self._spans[index].tolist()
        file = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(file, length, offset)
        finally:
            os.close(file)
        if len(data) != length or zlib.crc32(data) != crc:
            name = read_json(self.json_path)["tiles"][index][6]  # not kept: memory is for many slides
            raise InputError(f"{self.path}: tile {index} ({name}) is damaged; {REMEDY}")
        return data

    def read(self, index: int) -> np.ndarray:
        """Return tile `index` as uint8 RGB (tile_size, tile_size, 3)."""
        return decode_image(self.read_bytes(index), f"{self.path}: tile {index}", self.tile_size)

    def verify(self) -> None:
        """Read the whole tar; InputError where its SHA-256 or a tile's CRC32 differs, or a tile is no picture."""
        for index in range(len(self)):
            if (shape := self.read(index).shape) != (self.tile_size, self.tile_size, 3):
                raise InputError(f"{self.path}: tile {index} is of shape {shape}, not {self.tile_size} px; {REMEDY}")
        if sha256_of(self.path) != self.digest:
            raise InputError(f"{self.path}: content differs from its SHA-256; {REMEDY}")


def open_stores(folder: str | Path) -> dict[str, TileStore]:
    """Return the stores of a folder by slide key, sorted. Reads the JSONs only; InputError names a damaged store."""
    return {stem.name: TileStore(stem.with_name(stem.name + ".json")) for stem in store_stems(folder)}


def store_stems(folder: str | Path) -> list[Path]:
    """Return the paths without suffix of the stores of a folder, whole or not, sorted; InputError where it has none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such tile folder; make it with prepare_data.py tiles, or check the path")
    sealed = (p for p in folder.glob("[!.]*.json") if FORMAT.encode() in _start_of(p))
    stems = sorted({p.with_suffix("") for p in (*folder.glob("[!.]*.tar"), *sealed)})
    if not stems:
        raise InputError(f"{folder}: no tile store (<slide>.tar with <slide>.json) in it; run prepare_data.py tiles")
    return stems


def _start_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def decode_image(data: bytes, name: str, side: int | None = None) -> np.ndarray:
    """Return the bytes of a JPEG or PNG as uint8 RGB (H, W, 3); `side`: pixels of each side, others are refused.

    `name` says in the InputError which picture cannot be used.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if side is not None and image.size != (side, side):
                raise InputError(f"{name}: a picture of {image.size} pixels, {side} x {side} expected; {REMEDY}")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is neither" if isinstance(error, UnidentifiedImageError) else str(error)[:80]
        raise InputError(f"{name}: not a readable JPEG or PNG ({reason}); make or copy it again") from None
