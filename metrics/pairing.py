"""The null of every comparison by patient: the same number with generated and real patients paired at random.

A pairing is a row of integers (n,): entry p names whose generated tiles are judged against patient p's real ones.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from common.errors import InputError
from common.run import seed_for

PLACES = 1 << 20  # of an array: more are pixels, not grid positions
TIE = 1e-12  # relative difference up to which two values count as equal: one pairing summed in another order


def re_pairings(n: int, count: int = 999, seed: int = 99, groups: Any = None) -> np.ndarray:
    """Return `count` random permutations of n patients -> (count, n) int64, within `groups` (n,) where given.

    Each is uniform, the identity included, as an exact permutation test needs (Phipson & Smyth 2010).
    """
    rng = np.random.default_rng(seed_for(seed, "re_pairings"))
    pairings = np.tile(np.arange(n), (count, 1))
    for members in _members(n, groups):
        pairings[:, members] = rng.permuted(pairings[:, members], axis=1)
    return pairings


def torus_shifts(
    array_xy: Any, count: int = 999, seed: int = 99, groups: Any = None, mirrored: bool = False
) -> np.ndarray:
    """Return shifts of an array of spots on a torus -> (<= count, n) int64, the null where neighbours are alike.

    array_xy: (n, 2) integer grid positions. Each row moves the array's bounding box by a random non-zero offset, which
    wraps around, every section of `groups` (n,) by its own; entry i is the spot now at i's place, or the one nearest
    to it where that place has none (so a spot may occur twice; a section that half fills its box keeps about 6 of 10
    in each row). Neighbours stay neighbours but for the seam and the tissue's edge. On a hexagonal array with x + y
    always even, or always odd (10x Visium), only offsets that keep to it are drawn. `mirrored` also flips the box
    along one or both axes: 4 times as many rows to draw from.

    Rows are distinct: where sections have fewer non-zero shifts than `count`, all of them come, once each, so that no
    p-value is smaller than the array allows. InputError for positions that are not whole numbers or one place only.
    """
    xy = np.asarray(array_xy)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.equal(xy, np.round(xy)).all():
        raise InputError(f"array positions: expected whole numbers (n, 2), found {xy.dtype} of shape {xy.shape}")
    sections = [(m, _Torus(xy[m].astype(int), mirrored)) for m in _members(len(xy), groups)]
    sections = [(members, torus) for members, torus in sections if len(torus.moves)]
    if not sections:
        raise InputError("array positions: every section has one place only; a shift needs at least 2")
    rng = np.random.default_rng(seed_for(seed, "torus_shifts"))
    sizes = [len(torus.moves) for _, torus in sections]
    if prod(sizes) < 2**31:
        chosen = np.unravel_index(rng.choice(prod(sizes), min(count, prod(sizes)), replace=False), sizes)
    else:  # so many that drawing one twice is out of the question
        chosen = [rng.integers(size, size=count) for size in sizes]
    pairings = np.tile(np.arange(len(xy)), (len(chosen[0]), 1))
    for (members, torus), moves in zip(sections, chosen, strict=True):
        pairings[:, members] = members[torus.shifted(moves)]
    return pairings


def null_of(value: float | None, null: Any, lower_is_better: bool = False) -> dict[str, float | int | None]:
    """Return `value` beside its null (count,), the same number under random pairings, and the one-sided p-value.

    p_value = (1 + #{null >= value}) / (1 + count) (Phipson & Smyth 2010), `<=` where lower is better; null_q99 is the
    bound that 99 % of the null stay below (above, where lower is better); null_mean_abs is the mean of |null|.
    Undefined entries of the null (NaN) are left out and not counted; what cannot be computed is None.
    """
    null = np.asarray(null, dtype=np.float64)
    null = null[np.isfinite(null)]
    defined = value is not None and bool(np.isfinite(value))
    sign = -1 if lower_is_better else 1
    p_value = None
    if defined and len(null):
        margin = TIE * max(1.0, abs(value))
        p_value = float((1 + (sign * null >= sign * value - margin).sum()) / (1 + len(null)))
    return {
        "value": float(value) if defined else None,
        "null_mean": float(null.mean()) if len(null) else None,
        "null_mean_abs": float(np.abs(null).mean()) if len(null) else None,
        "null_q99": float(np.quantile(null, 0.01 if lower_is_better else 0.99)) if len(null) else None,
        "p_value": p_value,
        "count": len(null),
    }


def null_of_matrix(
    distance: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    pairings: np.ndarray,
    lower_is_better: bool = False,
) -> dict[str, float | int | None]:
    """Return null_of for `statistic` of `distance` (P, P), the null by putting its rows in the order of `pairings`."""
    distance = np.asarray(distance, dtype=np.float64)
    return null_of(statistic(distance), [statistic(distance[p]) for p in pairings], lower_is_better)


def _members(n: int, groups: Any) -> list[np.ndarray]:
    """The rows of each group, (n_g,) each."""
    groups = np.zeros(n, dtype=int) if groups is None else np.asarray(groups)
    if groups.shape != (n,):
        raise InputError(f"groups: expected one for each of {n} rows, found shape {groups.shape}")
    return [np.flatnonzero(groups == name) for name in np.unique(groups)]


class _Torus:
    """One section's spots in their bounding box, whose edges are joined; `moves` (m, 4) are its shifts."""

    def __init__(self, xy: np.ndarray, mirrored: bool) -> None:
        """Take spots xy (n, 2) int; list every move (sign x, sign y, offset x, offset y) but the identity."""
        self.xy = xy - xy.min(0, keepdims=True)
        hexagonal = self.xy.any() and len(np.unique(self.xy.sum(1) % 2)) == 1
        self.box = self.xy.max(0) + 1
        self.box += self.box % 2 if hexagonal else 0  # an even box: wrapping keeps x + y even
        width, height = self.box.tolist()
        if width * height > PLACES:
            raise InputError(f"array positions: {width} x {height} places; expected grid positions, not pixels")
        places = np.stack(np.meshgrid(np.arange(width), np.arange(height), indexing="ij"), -1)  # (W, H, 2)
        self.spot_at = cKDTree(self.xy).query(places)[1]  # (W, H): the spot at, or nearest to, each place
        offsets = places.reshape(-1, 2)
        offsets = offsets[offsets.sum(1) % 2 == 0] if hexagonal else offsets
        signs = [(1, -1) if mirrored and side > 2 else (1,) for side in (width, height)]  # 2 places: a flip is a shift
        flips = [(x, y) for x in signs[0] for y in signs[1]]
        self.moves = np.concatenate([np.column_stack([np.tile(f, (len(offsets), 1)), offsets]) for f in flips])[1:]

    def shifted(self, numbers: np.ndarray) -> np.ndarray:
        """Return (len(numbers), n): the spot now at each spot's place, after each of the moves by number."""
        moves = self.moves[numbers][:, None]  # (m, 1, 4)
        there = (self.xy * moves[..., :2] + moves[..., 2:]) % self.box
        return self.spot_at[there[..., 0], there[..., 1]]
