"""What a figure had to compute (a map, features), kept beside the figures by what it was computed from."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.archives import read_npz
from common.checkpoint import content_digest
from common.errors import InputError
from common.files import atomic_path
from datasets.expression import ExpressionTable

FORMAT = "figures 1"  # raise the number when equal inputs give other arrays

Arrays = dict[str, np.ndarray]


class Kept:
    """Arrays in <folder>/*.npz; a missing, damaged or foreign file is computed again."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def arrays(self, of: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """Return what `make` returns; `of`, numbers, strings and lists, must name all that it depends on."""
        described = json.dumps({"format": FORMAT, **of}, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.npz"
        try:
            file = read_npz(path)
            if str(file["of"]) == described:
                return {name: array for name, array in file.items() if name != "of"}
        except (InputError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            pass
        found = make()
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, of=np.str_(described), **found)
        return found


def table_digest(table: ExpressionTable) -> str:
    """Return a SHA-256 of a table's genes, sample names and values."""
    return content_digest([table.genes, [str(name) for name in table.obs.index], torch.from_numpy(table.values)])
