"""The binary cache that a parsed CSV leaves beside itself: `.<name>.cache`. A table is parsed once, then only read.

One file: a magic line; a line with a CRC32 and the JSON that it is of, padded so that the numbers start at a multiple
of 64 bytes; float32 values, row by row, whose CRC32 is in the JSON. It belongs to the CSV whose size and modification
time it names; where these differ, the SHA-256 decides, so that a copied or touched CSV keeps its cache and an edited
one never does. A missing, damaged or foreign cache is ignored, and so is a folder in which nothing can be written.
"""

import contextlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.files import atomic_path, sha256_of

MAGIC = b"rna-gan expression cache 2\n"  # raise the number whenever the CSV reader gives other values
SETTLED_S = 2.0  # seconds after its last change from which a file's time can be trusted to show the next change

Parsed = tuple[np.ndarray, list[str], pd.DataFrame]


def cache_path(path: str | Path) -> Path:
    """Return where the cache of the table at `path` lies."""
    path = Path(path)
    return path.with_name(f".{path.name}.cache")


def load_cache(path: str | Path) -> Parsed | None:
    """Return (values, genes, words) of the CSV at `path` from its cache, None where it has no valid one."""
    try:
        before = os.stat(path)
        with open(cache_path(path), "rb") as file:
            if file.readline() != MAGIC:
                return None
            checksum, body = file.readline().rstrip(b" \n").split(b" ", 1)
            if int(checksum, 16) != zlib.crc32(body):
                return None
            header = json.loads(body)
            shape = tuple(header["shape"])
            same = header["csv"] == _stamp(before) and header["settled"]
            if not same and (before.st_size != header["csv"]["size"] or sha256_of(path) != header["sha256"]):
                return None
            values = np.fromfile(file, np.float32).reshape(shape)
        if zlib.crc32(values) != header["checksum"]:
            return None
        words = pd.DataFrame(dict(header["words"]), dtype=object)
        genes = header["genes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not same:
        _write(path, before, header["sha256"], (values, genes, words))
    return values, genes, words


def save_cache(path: str | Path, before: os.stat_result, parsed: Parsed) -> None:
    """Leave a cache beside the CSV at `path`, which had the state `before` when it was parsed; never fails."""
    with contextlib.suppress(OSError):
        digest = sha256_of(path)
        if _stamp(os.stat(path)) == _stamp(before):  # else it was changed while we read it
            _write(path, before, digest, parsed)


def _write(path: str | Path, before: os.stat_result, digest: str, parsed: Parsed) -> None:
    values, genes, words = parsed
    header = {
        "csv": _stamp(before),
        "settled": time.time() - before.st_mtime > SETTLED_S,
        "sha256": digest,
        "shape": values.shape,
        "checksum": zlib.crc32(np.ascontiguousarray(values)),
        "genes": genes,
        "words": [[name, words[name].tolist()] for name in words.columns],
    }
    body = json.dumps(header).encode()
    line = b"%08x %s" % (zlib.crc32(body), body)
    line += b" " * (-(len(MAGIC) + len(line) + 1) % 64) + b"\n"
    with contextlib.suppress(OSError), atomic_path(cache_path(path)) as partial, open(partial, "wb") as file:
        file.write(MAGIC + line)
        values.tofile(file)


def _stamp(state: os.stat_result) -> dict[str, Any]:
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
