"""Features of a source, drawn several times: what every distance is computed from, each tile seen by a network once.

Several ranks divide the tiles among them. Rank 0 alone knows what the cache holds, keeps it, and can be asked for the
features afterwards.
"""

import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.distributed import current, on_this_machine
from common.errors import InputError
from common.memory import free_memory
from common.run import seed_for
from common.together import together
from datasets.feed import tile_batches
from datasets.tiles import area_resize
from models.features import Extractor, check_images
from models.generate import CHUNK
from sources.division import divided, from_main
from sources.feature_cache import FeatureCache, Rows
from sources.real import NumberedSource
from sources.statistics import StatisticsSource

BYTES_PER_PIXEL = 400  # of the extractor's input; measured: Inception 150, ResNet-50 280, DenseNet-121 340
MEMORY_SHARE = 0.25  # of the free memory that a batch may take; ours
MOST_AT_A_TIME = {"cpu": 16, "cuda": 256}  # more is no faster: on a CPU, activations of 16 tiles still fit its caches


def tiles_at_a_time(extractor: Extractor, side: int | None = None) -> int:
    """Return how many tiles to take at once: what fits a share of the device's free memory, within reason.

    `side`: of the tiles, in pixels, where a generator draws them on the same device. All ranks take as many, and where
    they have no GPU of their own, share the memory.
    """
    device, ranks = extractor.device, current()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory() / on_this_machine()
    fitting = int(MEMORY_SHARE * free / (BYTES_PER_PIXEL * max(extractor.input_side, side or 0) ** 2))
    fitting = max(1, min(fitting, MOST_AT_A_TIME.get(device.type, 16)))
    return int(torch.cat(ranks.gather(torch.tensor([fitting]))).min())


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
        """Compute what all draws need, every rank its share; later calls of features() and halves() only look up."""
        if self.is_statistics:
            return
        numbers = range(self.iterations)
        if not isinstance(self.source, NumberedSource):
            self._draw(numbers)
            return
        needed = [self.chosen(i) for i in numbers]
        if with_halves:
            needed += [half for i in numbers for half in self._chosen_halves(i)]
        self._know(np.unique(np.concatenate(needed)))

    def features(self, i: int) -> np.ndarray | None:
        """Return draw i as features (n, d) float32; None for statistics that were saved without features."""
        if self.is_statistics:
            return self.source.features
        if isinstance(self.source, NumberedSource):
            return self._look_up(self.chosen(i))
        if i not in self._draws:
            self._draw([i])
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

    # ---- A generator's tiles ----

    def _draw(self, numbers: Sequence[int]) -> None:
        """Make draws known: the features (n, d) of the generator's first n tiles with each draw's seed."""
        n = self.wanted
        with together():
            for i in numbers if current().main else ():
                rows = self.cache.load(self._described(self._seed(i)), self.extractor.dim)
                if len(rows) >= n:
                    self._draws[i] = np.stack([rows[k] for k in range(n)])
                    self.found += n
        missing = from_main(np.array([i for i in numbers if i not in self._draws], np.int64)).tolist()
        if current().world > 1 and missing:  # several processes divide all of them, so that no share is small
            self._draw_together(missing)
            return
        for i in missing:  # one process keeps each draw as soon as it is done
            self._draw_together([i])

    def _draw_together(self, numbers: Sequence[int]) -> None:
        n = self.wanted
        size = math.lcm(self.batch_size, CHUNK)  # the batches of one process, and no chunk is drawn by two
        units = [(i, first) for i in numbers for first in range(0, n, size)]

        def work(mine: Sequence[tuple[int, int]]) -> Iterator[dict[str, np.ndarray]]:
            for i, first in tqdm(mine, f"{self.name} draws", leave=False, disable=None):
                batches = self.source.batches(min(size, n - first), self._seed(i), self.batch_size, first)
                yield {"features": np.concatenate([self._extract(images) for images in batches])}

        features = divided(["features"], units, work)["features"]
        for i, own in zip(numbers, np.split(features, len(numbers)), strict=True):
            self._draws[i] = own
            if current().main:
                self.cache.save(self._described(self._seed(i)), dict(enumerate(own)))

    def _seed(self, i: int) -> int:
        return seed_for(self.seed, self.name, i)

    # ---- Numbered tiles ----

    def _know(self, indices: np.ndarray) -> None:
        """Make these tiles known: unknown ones are computed, the next tiles being read meanwhile."""
        with together():
            if self._rows is None and current().main:
                self._of = self._described()
                self._rows = self.cache.load(self._of, self.extractor.dim)
                self.found = sum(int(k) in self._rows for k in indices)
        self._rows = {} if self._rows is None else self._rows
        missing = from_main(np.array([k for k in indices.tolist() if k not in self._rows], np.int64))
        if not len(missing):
            return

        def work(mine: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            batches = tile_batches(self.source, lambda i: mine[i], 0, len(mine), workers=1)
            for _, images in tqdm(batches, f"{self.name} features", len(mine), leave=False, disable=None):
                yield {"features": self._extract(images)}

        units = np.array_split(missing, -(-len(missing) // self.batch_size))
        features = divided(["features"], units, work)["features"]
        self._rows.update(zip(missing.tolist(), features, strict=True))
        with together():
            if current().main and self._described() == self._of:  # else a tile was changed while we read them
                self.cache.save(self._of, self._rows)

    def _look_up(self, indices: np.ndarray) -> np.ndarray:
        """Return the features (n, d) of these tiles."""
        if self._rows is None or any(k not in self._rows for k in indices.tolist()):
            self._know(indices)
        return np.stack([self._rows[k] for k in indices.tolist()])

    def _described(self, seed: int | None = None) -> dict[str, Any]:
        """Return what the features depend on: the cache's key, empty without a cache."""
        extractor = self.extractor
        if self.cache.folder is None:
            return {}
        return {
            "tiles": self.source.digest(),
            "seed": seed,
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
