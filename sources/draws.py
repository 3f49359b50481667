"""Features of a source, drawn several times: what every distance is computed from, each tile seen by a network once."""

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.run import seed_for
from datasets.tiles import area_resize
from models.features import Extractor, check_images
from sources.real import NumberedSource
from sources.statistics import StatisticsSource


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
    ) -> None:
        """`side`: tiles are area-resized to so many pixels before the extractor sees them (None: left as they are)."""
        self.name, self.source, self.extractor, self.label = name, source, extractor, source.label
        self.wanted, self.iterations, self.seed, self.batch_size, self.side = n, iterations, seed, batch_size, side
        self._rows: dict[int, np.ndarray] = {}  # of a numbered source: tile -> feature
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
        needed = [self._chosen(i) for i in range(self.iterations)]
        if with_halves:
            needed += [half for i in range(self.iterations) for half in self._chosen_halves(i)]
        self._look_up(np.unique(np.concatenate(needed)))

    def features(self, i: int) -> np.ndarray | None:
        """Return draw i as features (n, d) float32; None for statistics that were saved without features."""
        if self.is_statistics:
            return self.source.features
        if isinstance(self.source, NumberedSource):
            return self._look_up(self._chosen(i))
        if i not in self._draws:
            batches = self.source.batches(self.wanted, seed_for(self.seed, self.name, i), self.batch_size)
            bar = tqdm(batches, f"{self.name} draw {i + 1}", -(-self.wanted // self.batch_size), leave=False)
            self._draws[i] = np.concatenate([self._extract(batch) for batch in bar])
        return self._draws[i]

    def halves(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features of two disjoint random sets of a real source's tiles, of n each or half of what there is."""
        first, second = self._chosen_halves(i)
        return self._look_up(first), self._look_up(second)

    def _chosen(self, i: int) -> np.ndarray:
        return self.source.choose(self.n, seed_for(self.seed, self.name, i))

    def _chosen_halves(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        size = min(self.n, self.source.count() // 2)
        if size < 2:
            raise InputError(f"{self.label}: {self.source.count()} tiles are too few to split into halves; add tiles")
        both = self.source.choose(2 * size, seed_for(self.seed, self.name, "halves", i))
        return both[:size], both[size:]

    def _look_up(self, indices: np.ndarray) -> np.ndarray:
        missing = [int(k) for k in indices if int(k) not in self._rows]
        steps = range(0, len(missing), self.batch_size)
        for start in tqdm(steps, f"{self.name} features", leave=False, disable=not missing):
            some = missing[start : start + self.batch_size]
            self._rows.update(zip(some, self._extract(self.source.read(np.array(some))), strict=True))
        return np.stack([self._rows[int(k)] for k in indices])

    def _extract(self, images: np.ndarray) -> np.ndarray:
        check_images(images, self.label)
        if self.side is not None and images.shape[1:3] != (self.side, self.side):
            images = np.stack([area_resize(image, self.side) for image in images])
        return self.extractor(images)
