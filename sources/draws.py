"""Features of a source, drawn several times: what every distance is computed from, each tile seen by a network once."""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import InputError
from common.memory import free_memory
from common.run import seed_for
from datasets.feed import tile_batches
from datasets.tiles import area_resize
from models.features import Extractor, check_images
from sources.feature_cache import FeatureCache, Rows
from sources.real import NumberedSource
from sources.statistics import StatisticsSource

BYTES_PER_PIXEL = 400  # of the extractor's input; measured: Inception 150, ResNet-50 280, DenseNet-121 340
MEMORY_SHARE = 0.25  # of the free memory that a batch may take; ours
MOST_AT_A_TIME = {"cpu": 16, "cuda": 256}  # more is no faster: on a CPU, activations of 16 tiles still fit its caches


def tiles_at_a_time(extractor: Extractor, side: int | None = None) -> int:
    """Return how many tiles to take at once: what fits a share of the device's free memory, within reason.

    `side`: of the tiles, in pixels, where a generator draws them on the same device. Features do not depend on it.
    """
    device = extractor.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    fitting = int(MEMORY_SHARE * free / (BYTES_PER_PIXEL * max(extractor.input_side, side or 0) ** 2))
    return max(1, min(fitting, MOST_AT_A_TIME.get(device.type, 16)))


class Draws:
    """`iterations` draws of up to n tiles from one source, as features.

    A draw depends on (seed, name, its number) alone, so that two sources, and two sides that happen to be the same
    source, are drawn independently. Real tiles are drawn without repeats within a draw; draws may share tiles.
    """

    def __init__(
        self,
        name: str,
        source: object,
        extractor: Extractor,
        n: int,
        iterations: int,
        seed: int,
        batch_size: int = 64,
        side: int | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        """`side`: tiles are area-resized to so many pixels before the extractor sees them (None: left as they are).

        `cache`: where features are looked up first, and kept (None: nowhere).
        """
        self.cache, self.found = cache or FeatureCache(None), 0  # tiles whose features came from the cache
        self.name, self.source, self.extractor, self.label = name, source, extractor, source.label
        self.wanted, self.iterations, self.seed, self.batch_size, self.side = n, iterations, seed, batch_size, side
        self._rows: Rows | None = None  # of a numbered source; None: the cache was not asked yet
        self._draws: dict[int, np.ndarray] = {}
        if isinstance(source, StatisticsSource):
            source.check(extractor.name, extractor.digest)

    @property
    def is_statistics(self) -> bool:
        """True where there are no tiles, only saved statistics (with or without features)."""
        return isinstance(self.source, StatisticsSource)

    @property
    def n(self) -> int:
        """Tiles in each draw: n, or as many as there are."""
        available = self.source.count()
        return available if self.is_statistics else self.wanted if available is None else min(self.wanted, available)

    def extract(self, with_halves: bool = False) -> None:
        """Compute what all draws need, with one progress bar; later calls of features() only look up."""
        if self.is_statistics:
            return
        if not isinstance(self.source, NumberedSource):
            for i in range(self.iterations):
                self.features(i)
            return
        needed = [self.chosen(i) for i in range(self.iterations)]
        if with_halves:
            needed += [half for i in range(self.iterations) for half in self._chosen_halves(i)]
        self._look_up(np.unique(np.concatenate(needed)))

    def features(self, i: int) -> np.ndarray | None:
        """Return draw i as features (n, d) float32; None for statistics that were saved without features."""
        if self.is_statistics:
            return self.source.features
        if isinstance(self.source, NumberedSource):
            return self._look_up(self.chosen(i))
        if i not in self._draws:
            self._draws[i] = self._drawn(seed_for(self.seed, self.name, i), f"{self.name} draw {i + 1}")
        return self._draws[i]

    def halves(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features of two disjoint random sets of a real source's tiles, of n each or half of what there is."""
        first, second = self._chosen_halves(i)
        return self._look_up(first), self._look_up(second)

    def chosen(self, i: int) -> np.ndarray:
        """Return the tiles' numbers of draw i of a real source, (n,)."""
        return self.source.choose(self.n, seed_for(self.seed, self.name, i))

    def _chosen_halves(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        size = min(self.n, self.source.count() // 2)
        if size < 2:
            raise InputError(f"{self.label}: {self.source.count()} tiles are too few to split into halves; add tiles")
        both = self.source.choose(2 * size, seed_for(self.seed, self.name, "halves", i))
        return both[:size], both[size:]

    def _drawn(self, seed: int, title: str) -> np.ndarray:
        """Return the features (n, d) of the generator's first n tiles with `seed`."""
        of = self._described(seed)
        rows = self.cache.load(of, self.extractor.dim)
        if len(rows) >= self.wanted:
            self.found += self.wanted
            return np.stack([rows[k] for k in range(self.wanted)])
        batches = self.source.batches(self.wanted, seed, self.batch_size)
        bar = tqdm(batches, title, -(-self.wanted // self.batch_size), leave=False, disable=None)
        features = np.concatenate([self._extract(batch) for batch in bar])
        self.cache.save(of, dict(enumerate(features)))
        return features

    def _look_up(self, indices: np.ndarray) -> np.ndarray:
        """Return the features (n, d) of these tiles; unknown ones are computed, the next tiles being read meanwhile."""
        if self._rows is None:
            self._of = self._described()
            self._rows = self.cache.load(self._of, self.extractor.dim)
            self.found = sum(int(k) in self._rows for k in indices)
        missing = np.array([k for k in indices.tolist() if k not in self._rows], int)
        if len(missing):
            parts = np.array_split(missing, -(-len(missing) // self.batch_size))
            batches = tile_batches(self.source, lambda i: parts[i], 0, len(parts), workers=1)
            for some, images in tqdm(batches, f"{self.name} features", len(parts), leave=False, disable=None):
                self._rows.update(zip(some.tolist(), self._extract(images), strict=True))
            if self._described() == self._of:  # else a tile was changed while we read them
                self.cache.save(self._of, self._rows)
        return np.stack([self._rows[k] for k in indices.tolist()])

    def _described(self, seed: int | None = None) -> dict[str, Any]:
        """Return what the features depend on: the cache's key, empty without a cache."""
        extractor = self.extractor
        if self.cache.folder is None:
            return {}
        return {
            "tiles": self.source.digest(),
            "seed": seed,
            "n": self.wanted if seed is not None and self.source.by_chunk else None,
            "versions": [f"{library} {version(library)}" for library in ("torch", "torchvision", "pillow")],
            "side": self.side,
            "extractor": extractor.name,
            "weights": extractor.digest,
            "preprocessing": extractor.preprocessing,
            "device": extractor.device.type,
        }

    def _extract(self, images: np.ndarray) -> np.ndarray:
        check_images(images, self.label)
        if self.side is not None and images.shape[1:3] != (self.side, self.side):
            images = np.stack([area_resize(image, self.side) for image in images])
        return self.extractor(images)
