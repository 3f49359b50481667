"""Which tiles of a store are used, by what was measured when they were cut."""

import argparse
from dataclasses import dataclass

import numpy as np

from common.config import DataSettings
from common.errors import InputError
from datasets.tiles import TileStore


@dataclass(frozen=True)
class TileLimits:
    """Which tiles of a store are used, by the scores that were kept when they were cut: no slide is read again."""

    min_tissue: float = 0.0
    min_sharpness: float = 0.0
    max_pen: float = 1.0

    def __post_init__(self) -> None:
        """InputError where a limit is no share."""
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} = {value:g}: expected 0 to 1")

    @classmethod
    def of(cls, given: DataSettings | argparse.Namespace) -> "TileLimits":
        """Return the limits that settings name, or those of the flags of `add_tile_limits` that were given."""
        values = {name: getattr(given, name) for name in ("min_tissue", "min_sharpness", "max_pen")}
        return cls(**{name: value for name, value in values.items() if value is not None})

    def __str__(self) -> str:
        """The limits in words, with a blank before; empty where there are none."""
        named = [f"{name} {value:g}" for name, value in vars(self).items() if value != getattr(TileLimits, name)]
        return f" within {', '.join(named)}" if named else ""

    def numbers(self, store: TileStore) -> np.ndarray:
        """Return the numbers (n,) of a store's tiles within the limits. InputError where it lacks a score asked for."""
        good = np.ones(len(store), bool)
        if self.min_tissue > 0:
            if np.isnan(store.tissue).any():
                raise InputError(
                    f"{store.json_path}: the tissue share of its tiles is not known (imported); leave min_tissue out"
                )
            good &= store.tissue >= np.float32(self.min_tissue)
        if self.min_sharpness > 0:
            good &= self._score(store, "sharpness") >= np.float32(self.min_sharpness)
        if self.max_pen < 1:
            good &= self._score(store, "pen") <= np.float32(self.max_pen)
        return np.flatnonzero(good)

    @staticmethod
    def _score(store: TileStore, name: str) -> np.ndarray:
        if name not in store.scores and len(store):
            raise InputError(
                f"{store.json_path}: keeps no {name} of its tiles (imported, spots, cut by --criteria published, or "
                f"before scores were kept); leave the limit of {name} out, or cut the slide again"
            )
        return store.scores.get(name, np.zeros(0, np.float32))
