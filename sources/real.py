"""Sets of tiles that exist already: a cohort's, one patient's, or a folder of pictures.

Every source has `label` (what was loaded, for tables), `describe()` (the same in full, for metrics.json), `digest()`
(of what its tiles depend on), `count()` (how many tiles there are; None: as many as asked for) and `batches(n, seed)`.
Where count() is a number the tiles are numbered, and `choose` and `read` let a caller compute a tile's features once
however often it is drawn.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.files import sha256_of
from common.run import generator_for
from datasets.cohort import Cohort
from datasets.image_folder import read_image, read_image_folder


class NumberedSource:
    """A finite set of tiles, numbered from 0; subclasses say how many and read them."""

    label = ""

    def count(self) -> int:
        """Return how many tiles there are."""
        raise NotImplementedError

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the tiles `indices` as uint8 RGB (n, H, W, 3)."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return a SHA-256 that changes with the content of any tile, or their order, and with nothing else."""
        raise NotImplementedError

    def choose(self, n: int, seed: int) -> np.ndarray:
        """Return n different tile numbers drawn with `seed`; all of them, in random order, where there are fewer."""
        return torch.randperm(self.count(), generator=generator_for(seed, "choose"))[:n].numpy()

    def batches(self, n: int, seed: int, batch_size: int = 64) -> Iterator[np.ndarray]:
        """Yield uint8 RGB (b, H, W, 3), n tiles in all, or every tile once where there are fewer."""
        chosen = self.choose(n, seed)
        for i in range(0, len(chosen), batch_size):
            yield self.read(chosen[i : i + batch_size])


class RealSource(NumberedSource):
    """Real tiles of a cohort: all, or one patient's (a slide, a sample or a donor)."""

    def __init__(self, cohort: Cohort, patient: str | None = None, name: str = "") -> None:
        """`name` says which cohort (the config's stem). InputError where the patient has no tiles (nearest names)."""
        self.cohort, self.patient = cohort, patient
        self.indices = np.arange(len(cohort.tiles)) if patient is None else cohort.tiles_of(patient)
        self.slides = cohort.slides.iloc[np.unique(cohort.tiles.slide_index[self.indices])]
        if not len(self.indices):
            raise InputError(f"{patient or name}: no tiles; extract some with prepare_data.py tiles")
        tissues = "+".join(sorted(self.slides["tissue"].astype(str).unique()))
        if patient is None:
            splits = "+".join(sorted(set(self.slides["split"]))) if self.slides["split"].nunique() == 1 else ""
            self.label = f"real {tissues} ({len(self.slides)} {splits + ' ' * bool(splits)}slides)"
        else:
            self.label = f"real {tissues} {'+'.join(self.slides['slide'])} ({'+'.join(self.slides['split'].unique())})"
        self.name = name

    def count(self) -> int:
        """Return how many tiles there are."""
        return len(self.indices)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the tiles `indices` as uint8 RGB (n, H, W, 3)."""
        return self.cohort.tiles.read(self.indices[np.asarray(indices)])

    def digest(self) -> str:
        """Return a SHA-256 over the sealed digests of the stores in use, which tiles of them, and the side."""
        tiles, digest = self.cohort.tiles, hashlib.sha256(f"stores at {self.cohort.tiles.img_size} px".encode())
        whose, which = tiles.slide_index[self.indices], tiles.tile_index[self.indices]
        for number in dict.fromkeys(whose.tolist()):
            digest.update(tiles.stores[number].digest.encode() + which[whose == number].astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what was loaded."""
        return {
            "kind": "real",
            "label": self.label,
            "config": self.name,
            "patient": self.patient,
            "tissues": sorted(self.slides["tissue"].astype(str).unique()),
            "slides": len(self.slides),
            "splits": {k: int(v) for k, v in self.slides["split"].value_counts().items()},
            "tiles": self.count(),
            "img_size": self.cohort.tiles.img_size,
            "mpp": self.cohort.tiles.mpp,
            "left_out": len(self.cohort.left_out),
        }


class FolderSource(NumberedSource):
    """Pictures (PNG or JPEG) of a folder, all of one size or brought to `img_size`."""

    def __init__(self, path: str | Path, img_size: int | None = None) -> None:
        """InputError where there is no such folder or no picture in it; a damaged picture is named when it is read."""
        self.path, self.files, self.img_size = Path(path), read_image_folder(path), img_size
        self.label = f"folder {self.path} ({len(self.files)} pictures)"

    def side(self) -> int:
        """Return the shorter side of the first picture, in pixels."""
        return min(read_image(self.files[0]).shape[:2])

    def count(self) -> int:
        """Return how many pictures there are."""
        return len(self.files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the pictures `indices` as uint8 RGB (n, H, W, 3); InputError names one that is damaged or differs."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # else one core waits while another decodes
            images = list(pool.map(lambda i: read_image(self.files[i], self.img_size), indices))
        for i, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                found, expected = (f"{s[1]} x {s[0]}" for s in (image.shape, images[0].shape))
                raise InputError(
                    f"{self.files[i]}: {found} pixels, {expected} expected as in the others; make all of one size"
                )
        return np.stack(images)

    def digest(self) -> str:
        """Return a SHA-256 over the content of the files, in their order, and the side; names do not count."""
        digest = hashlib.sha256(f"pictures at {self.img_size} px".encode())
        for file in self.files:
            digest.update(bytes.fromhex(sha256_of(file)))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what was loaded; the digest is of the first picture's file, to tell folders of one name apart."""
        return {
            "kind": "folder",
            "label": self.label,
            "path": str(self.path),
            "tiles": self.count(),
            "img_size": self.img_size,
            "first_file": self.files[0].name,
            "first_digest": sha256_of(self.files[0]),
        }
