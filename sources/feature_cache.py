"""Features on disk, so that a set of tiles passes an extractor once, whatever it is compared with later.

One .npz per (tiles, extractor, precision, side, device): the numbers of tiles (m,) int64 and their features (m, d)
float32, with the description that its name is the digest of. Tiles are known by their content (digests of stores, of
pictures, or of a generator with its profile and seed), never by a path or a time, so that a changed tile is a miss and
a moved folder is a hit. A missing, damaged or foreign file is ignored and written again, and so is a folder in which
nothing can be written. 8 KB a tile with 2,048 features; beyond LIMIT bytes the files used longest ago are removed.
"""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from common.archives import read_npz
from common.errors import InputError
from common.files import atomic_path, remove_partials

# Raise the number when a model draws other tiles, or equal tiles give other features, be it by rounding: in those of 6
# Inception's layers in bf16 are packed; in those of 5 they are rounded from Mixed_6a on alone.
FORMAT = "rna-gan features 6"
LIMIT = 4 * 2**30  # bytes of one folder; ours
VARIABLE = "RNAGAN_FEATURE_CACHE"

Rows = dict[int, np.ndarray]  # number of a tile -> its feature (d,) float32


def cache_folder(flag: str | None) -> Path | None:
    """Return the folder of `flag`, else of $RNAGAN_FEATURE_CACHE, else the user's cache; None for "none": no cache."""
    asked = flag or os.environ.get(VARIABLE)
    if asked:
        return None if asked == "none" else Path(asked)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rna-gan" / "features"


class FeatureCache:
    """Features by what they are of: `of` describes tiles and extractor in numbers and strings, and is the key."""

    def __init__(self, folder: str | Path | None) -> None:
        """Keep features in `folder`, which is made with the first ones; None: keep nothing."""
        self.folder = None if folder is None else Path(folder)

    def load(self, of: dict[str, Any], dim: int) -> Rows:
        """Return the features (dim,) that are known, by number; none where there is no valid file."""
        if self.folder is None:
            return {}
        path, description = self._place(of)
        try:
            file = read_npz(path)  # the zip's CRC32s are checked
            known, numbers, features = str(file["of"]), file["numbers"], file["features"]
            if known != description or numbers.shape != (len(features),) or features.shape[1:] != (dim,):
                return {}
            if numbers.dtype != np.int64 or features.dtype != np.float32:
                return {}
        except (InputError, OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
            return {}
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(path)  # used now
        return dict(zip(numbers.tolist(), features, strict=True))

    def save(self, of: dict[str, Any], rows: Rows) -> None:
        """Keep features, whole or not at all; never fails."""
        if self.folder is None or not rows:
            return
        path, description = self._place(of)
        numbers = np.array(sorted(rows), np.int64)
        remove_partials(self.folder)
        with contextlib.suppress(OSError):
            with atomic_path(path) as partial, open(partial, "wb") as file:
                features = np.stack([rows[k] for k in numbers.tolist()]).astype(np.float32)
                np.savez(file, of=np.str_(description), numbers=numbers, features=features)
            self._bound()

    def _place(self, of: dict[str, Any]) -> tuple[Path, str]:
        description = json.dumps({"format": FORMAT, **of}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(description.encode()).hexdigest()}.npz", description

    def _bound(self) -> None:
        states = [(path, path.stat()) for path in self.folder.glob("*.npz")]
        total = sum(state.st_size for _, state in states)
        for path, state in sorted(states, key=lambda item: item[1].st_mtime_ns)[:-1]:
            if total <= LIMIT:
                break
            path.unlink(missing_ok=True)
            total -= state.st_size
