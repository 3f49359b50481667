"""The published code's tiles (one LMDB file per slide) as tile stores, read without executing anything in them.

Such a file has keys b"0", b"1", ... and b"__keys__"; a value is an LZ4 frame of a pickle: (name, pixels, shape) of a
tile, RGB uint8 (H, W, 3); under b"__keys__" the list of the other keys. It says neither where a tile was on its slide
nor how large a pixel is.
"""

import itertools
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, warn
from common.restricted_pickle import load_plain
from datasets.keys import slide_key
from datasets.tiles import Tile, TileStore, write_store
from datasets.workers import interrupts_held_back, start_worker

KEYS = b"__keys__"
MAX_SIDE = 4096  # pixels of a tile
MAX_VALUE = 3 * MAX_SIDE**2 + 4096  # bytes of one value, decompressed
REMEDY = "copy it again, or cut its slide with prepare_data.py tiles"


@dataclass(frozen=True)
class ImportSettings:
    """How the tiles are kept, and the size of their pixels, which the files do not tell."""

    mpp: float
    fmt: str = "jpeg"
    quality: int = 95


def find_published(path: str | Path) -> list[Path]:
    """Return the LMDB files that `path` is or has in it, sorted by slide. InputError: none, or a slide twice."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; --lmdb expects the <slide>.db files of the published code")
    found = [path] if path.is_file() else sorted(path.rglob("*.db"), key=lambda p: (slide_of(p), str(p)))
    if not found:
        raise InputError(f"{path}: no *.db in it; the published code writes <slide>/<slide>.db")
    for one, other in itertools.pairwise(found):
        if slide_of(one) == slide_of(other):
            raise InputError(f"{one} and {other}: two files of one slide; remove one of them")
    return found


def slide_of(path: Path) -> str:
    """Return the slide's key: "GTEX-X-0625.svs.db" -> "GTEX-X-0625"."""
    return slide_key(path.name.removesuffix(".db"))


def import_published(path: Path, out: str | Path, settings: ImportSettings, restart: bool = False) -> tuple[int, bool]:
    """Write the tiles of one file as `<out>/<slide>.tar` and .json; return how many, and whether they were there.

    A store that was imported from the same file with the same settings is kept (`restart`: written again). InputError
    where the file is damaged or cut short, or holds anything else than plain tiles, and about a store of another kind.
    It is read in a process of its own: LMDB maps the file into memory, and a damaged one may end who reads it (SIGBUS).
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, path, Path(out), settings, restart), daemon=True)
    with interrupts_held_back():
        process.start()
    there.close()  # so that the end of the process is seen on `here`
    try:
        result = here.recv()
    except EOFError:
        process.join()
        result = InputError(f"{path}: reading it ended its process (exit code {process.exitcode}): damaged; {REMEDY}")
    finally:
        process.kill()
        process.join()
        here.close()
        for suffix in ("tar", "json"):  # what it left half-written, and no other process's file
            Path(out, f".{slide_of(path)}.{suffix}.{process.pid}.partial").unlink(missing_ok=True)
    if isinstance(result, Exception):
        raise result
    return result


def _answer(answer: Connection, *arguments: Any) -> None:
    start_worker()
    try:
        answer.send(_import(*arguments))
    except (InputError, OSError) as error:
        answer.send(error)


def _import(path: Path, out: Path, settings: ImportSettings, restart: bool) -> tuple[int, bool]:
    key, file = slide_of(path), path.stat()
    origin = {**asdict(settings), "file": path.name, "bytes": file.st_size, "mtime_ns": file.st_mtime_ns}
    sealed = out / f"{key}.json"
    if sealed.exists() and not restart:
        if (store := TileStore(sealed)).extra.get("imported") == origin:
            return len(store), True
        raise InputError(f"{sealed}: there already, from elsewhere; choose another --out, or --restart to replace it")
    with _opened(path) as values:
        first = next(values, None)
        if first is None:
            raise InputError(f"{path}: no tile in it; {REMEDY}")
        side, count = len(first), 1

        def tiles() -> Iterator[Tile]:
            nonlocal count
            yield None, None, None, first
            for image in values:
                count += 1
                if len(image) != side:
                    raise InputError(f"{path}: tiles of {side} and of {len(image)} pixels, one size was expected")
                yield None, None, None, image

        extra = {"imported": origin}
        write_store(
            out, key, tiles(), mpp=settings.mpp, tile_size=side, fmt=settings.fmt, quality=settings.quality, extra=extra
        )
    return count, False


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[np.ndarray]]:
    """Open a file; yield its tiles, uint8 RGB (H, H, 3), in the order of its keys."""
    import lmdb

    try:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False) as database:
            needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
            if (size := path.stat().st_size) < needed:  # a page beyond the end of the file would end the process
                raise InputError(f"{path}: {size} bytes, {needed} expected: cut short; {REMEDY}")
            with database.begin(buffers=True) as transaction:
                yield _tiles(path, transaction)
    except lmdb.Error as error:
        raise InputError(f"{path}: not a readable LMDB file ({str(error)[:100]}); {REMEDY}") from None


def _tiles(path: Path, transaction: Any) -> Iterator[np.ndarray]:
    for key in _keys(path, transaction):
        where = f"{path}: tile {key.decode(errors='replace')[:40]}"
        value = transaction.get(key)
        if value is None:
            raise InputError(f"{where}: listed, but missing; {REMEDY}")
        yield _image(load_plain(_unpacked(value, where), where), where)


def _keys(path: Path, transaction: Any) -> list[bytes]:
    value = transaction.get(KEYS)
    if value is None:  # written last: what is there is whole all the same
        keys = sorted((k for k in map(bytes, transaction.cursor().iternext(values=False)) if k.isdigit()), key=int)
        warn(f"{path}: has no list of its tiles (writing was cut short): the {len(keys)} in it are taken")
        return keys
    where = f"{path}: {KEYS.decode()}"
    keys = load_plain(_unpacked(value, where), where)
    if not isinstance(keys, list) or not all(isinstance(key, bytes) for key in keys):
        raise InputError(f"{where}: a list of keys was expected; {REMEDY}")
    return keys


def _unpacked(value: Any, where: str) -> bytes:
    """Return what an LZ4 frame holds, at most MAX_VALUE bytes."""
    import lz4.frame

    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        data = decompressor.decompress(bytes(value), max_length=MAX_VALUE + 1)
    except (RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{where}: not a readable LZ4 frame ({str(error)[:80]}); {REMEDY}") from None
    if len(data) > MAX_VALUE:
        raise InputError(f"{where}: more than {MAX_VALUE} bytes, too many for a tile; {REMEDY}")
    if not decompressor.eof:
        raise InputError(f"{where}: an LZ4 frame that was cut short; {REMEDY}")
    return data


def _image(value: Any, where: str) -> np.ndarray:
    """Return the picture of (name, pixels, shape), uint8 RGB (H, H, 3)."""
    if not (isinstance(value, tuple) and len(value) == 3 and isinstance(value[1], bytes)):
        raise InputError(f"{where}: a tuple of name, pixels and shape was expected; {REMEDY}")
    _, pixels, shape = value
    if not (isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int for n in shape)):
        raise InputError(f"{where}: shape {str(shape)[:60]!r}, (height, width, 3) was expected; {REMEDY}")
    height, width, channels = shape
    if height != width or not 8 <= height <= MAX_SIDE or channels != 3 or len(pixels) != height * width * 3:
        raise InputError(
            f"{where}: {len(pixels)} bytes of shape {shape}, a square RGB tile of 8 to {MAX_SIDE} pixels was expected; "
            f"{REMEDY}"
        )
    return np.frombuffer(pixels, np.uint8).reshape(shape)
