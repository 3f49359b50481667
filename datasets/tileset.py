"""Tiles of many slides as one numbered set: what training, metrics and sources draw from."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from common.errors import InputError
from common.run import generator_for
from datasets.tile_limits import TileLimits
from datasets.tiles import MPP_TOLERANCE, TileStore, area_resize


class TileSet:
    """Tiles 0..N-1 of several stores, resized to `img_size`.

    `stores` are in the order given; `slide_index` (N,) says of which store tile i is, `tile_index` (N,) which of its
    tiles; `mpp` is the effective micrometres per pixel after resizing.
    """

    def __init__(
        self,
        stores: Iterable[TileStore],
        img_size: int,
        max_per_slide: int = 0,
        seed: int = 99,
        limits: TileLimits | None = None,
    ) -> None:
        """Take at most `max_per_slide` tiles of each store (0: all), the same ones for the same (seed, slide).

        Only those within `limits` are taken.
        """
        self.stores: Sequence[TileStore] = list(stores.values()) if isinstance(stores, dict) else list(stores)
        self.img_size = img_size
        limits = limits or TileLimits()
        chosen = [_choose(limits.numbers(s), max_per_slide, seed, s.slide) for s in self.stores]
        self.tile_index = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)  # (N,)
        self.slide_index = np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])  # (N,)
        self.mpp = self._effective_mpp()
        self._cached = np.zeros(len(self), bool)
        self._cache = np.empty((0, img_size, img_size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.tile_index)

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles, resized, as uint8: N x img_size x img_size x 3."""
        return len(self) * self.img_size**2 * 3

    def keep(self) -> None:
        """From now on keep tiles in memory once read, resized: `nbytes` in the end."""
        if not len(self._cache):
            self._cache = np.empty((len(self), self.img_size, self.img_size, 3), np.uint8)

    def read(self, indices: Iterable[int]) -> np.ndarray:
        """Return the tiles `indices` as uint8 RGB (n, img_size, img_size, 3), in that order."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        out = np.empty((len(indices), self.img_size, self.img_size, 3), np.uint8)
        for row, index in enumerate(indices):
            if self._cached[index]:
                out[row] = self._cache[index]
                continue
            store = self.stores[self.slide_index[index]]
            out[row] = area_resize(store.read(int(self.tile_index[index])), self.img_size)
            if len(self._cache):
                self._cache[index] = out[row]
                self._cached[index] = True
        return out

    def place_of(self, index: int) -> str:
        """Return in words where tile `index` is: its slide's file, and its number there."""
        return f"{self.stores[self.slide_index[index]].path}: tile {self.tile_index[index]}"

    def named(self, indices: Iterable[int]) -> list[str]:
        """Return "<slide> tile <number>" of each tile."""
        return [f"{self.stores[self.slide_index[i]].slide} tile {self.tile_index[i]}" for i in indices]

    def of_slide(self, slide: str) -> np.ndarray:
        """Return the indices of one slide's tiles, empty where the set has none of it."""
        wanted = [i for i, store in enumerate(self.stores) if store.slide == slide]
        return np.flatnonzero(np.isin(self.slide_index, wanted))

    def _effective_mpp(self) -> float | None:
        sides = [store.mpp * store.tile_size for store in self.stores]  # micrometres
        for store, side in zip(self.stores, sides, strict=True):
            if abs(side / sides[0] - 1) > MPP_TOLERANCE:
                raise InputError(
                    f"{store.json_path}: tiles of {side:.4g} um, {self.stores[0].slide} has {sides[0]:.4g} um; "
                    "cut all slides with the same --mpp and --tile_size"
                )
        return sides[0] / self.img_size if sides else None


def _choose(numbers: np.ndarray, limit: int, seed: int, slide: str) -> np.ndarray:
    if not limit or len(numbers) <= limit:
        return numbers
    order = torch.randperm(len(numbers), generator=generator_for(seed, "tiles", slide))
    return numbers[np.sort(order[:limit].numpy())]
