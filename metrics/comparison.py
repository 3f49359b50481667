"""What is held against what, and how a number stands: patients' tiles measured, halved, paired at random.

A block says how a number stands: value and sd over sampling seeds, low and high (95 % bootstrap over patients), chance,
ceiling (what real tiles reach against themselves), relative (0 at chance, 1 at the ceiling), null_q99 and
p_value under re-paired patients, n. Where there are several seeds p_value and null_q99 are the worst of them. What
cannot be computed is None; so are low and high of spots, whose neighbours are alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.run import seed_for
from metrics.conditioning import relative

BOOTSTRAPS = 999
Block = dict[str, Any]


@dataclass
class Measured:
    """Tiles of P patients, measured: features, P tables (n_p, d); morphology, measure -> P of (n_p,)."""

    features: list[np.ndarray]
    morphology: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def take(self, rows: Sequence[np.ndarray]) -> "Measured":
        """Return the tiles rows[p] of each patient."""
        morphology = {name: _taken(values, rows) for name, values in self.morphology.items()}
        return Measured(_taken(self.features, rows), morphology)

    @property
    def means(self) -> np.ndarray:
        """Mean feature of each patient (P, d)."""
        return np.stack([x.mean(0, dtype=np.float64) for x in self.features])

    def mean_of(self, measure: str) -> np.ndarray:
        """Mean of a measure over each patient's tiles that have it (P,), NaN where none has."""
        fine = [v[np.isfinite(v)] for v in self.morphology[measure]]
        return np.array([v.mean() if len(v) else np.nan for v in fine])


@dataclass
class Comparison:
    """What generated tiles are held against: the same patients' real tiles, their halves, and random pairings.

    halves: pairs of disjoint parts of `real`; nulls (count, P): entry p names whose generated tiles are judged against
    p's real ones; chosen (Q,): the patients among whom retrieval and distances look; independent: False where patients
    are spots, whose neighbours are alike.
    """

    real: Measured
    halves: list[tuple[Measured, Measured]]
    nulls: np.ndarray
    chosen: np.ndarray
    independent: bool = True

    def interval(self, n: int, statistic: Callable[[np.ndarray], float]) -> tuple[float, float] | None:
        """Return the 95 % percentile interval of `statistic` of n resampled patients' rows (n,); None for spots."""
        if not self.independent:
            return None
        rng = np.random.default_rng(seed_for(0, "bootstrap", n))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.array([statistic(rng.integers(n, size=n)) for _ in range(BOOTSTRAPS)])
        found = found[np.isfinite(found)]
        return tuple(np.quantile(found, (0.025, 0.975)).tolist()) if len(found) > BOOTSTRAPS // 2 else None


def halve(sizes: Sequence[int], times: int, seed: int) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Return `times` random splits of each patient's tiles 0..n_p - 1, n_p >= 2, into two halves."""
    rng = np.random.default_rng(seed)
    splits = []
    for _ in range(times):
        orders = [rng.permutation(n) for n in sizes]
        splits.append(([o[: len(o) // 2] for o in orders], [o[len(o) // 2 :] for o in orders]))
    return splits


def block(
    per_seed: Sequence[float | None],
    tests: Sequence[Mapping[str, Any]] = (),
    chance: float | None = None,
    ceiling: float | None = None,
    n: int | None = None,
    interval: tuple[float, float] | None = None,
) -> Block:
    """Return a block of a number's values, one per sampling seed, and of null_of of each."""
    known = [v for v in per_seed if v is not None and np.isfinite(v)]
    whole = len(known) == len(per_seed) > 0
    value = float(np.mean(known)) if whole else None
    return {
        "value": value,
        "sd": (float(np.std(known, ddof=1)) if len(known) > 1 else 0.0) if whole else None,
        "low": interval[0] if interval and whole else None,
        "high": interval[1] if interval and whole else None,
        "per_seed": [None if v is None or not np.isfinite(v) else float(v) for v in per_seed],
        "chance": chance,
        "ceiling": None if ceiling is None or not np.isfinite(ceiling) else float(ceiling),
        "relative": relative(value, chance, ceiling) if chance is not None else None,
        "null_mean": _over(tests, "null_mean", np.mean),
        "null_q99": _over(tests, "null_q99", np.max),
        "p_value": _over(tests, "p_value", np.max) if whole else None,
        "pairings": min((t["count"] for t in tests), default=0),
        "n": n,
    }


def _taken(tables: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [x[r] for x, r in zip(tables, rows, strict=True)]


def _over(tests: Sequence[Mapping[str, Any]], key: str, how: Callable[[list[float]], float]) -> float | None:
    values = [t[key] for t in tests if t.get(key) is not None]
    return float(how(values)) if values else None
