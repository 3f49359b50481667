"""Kernel distance between two sets of features: the unbiased squared MMD with a cubic kernel (Binkowski et al. 2018).

Called KID with Inception features. Unlike the Fréchet distance its expectation does not depend on n, so it is the one
to read where tiles are few; it may be slightly negative for sets of one distribution.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.run import generator_for
from metrics.frechet import checked_features, feature_matrix

ENTRIES = 1 << 22  # entries of a Gram matrix held at a time: 32 MiB


def kernel_distance(x: Any, y: Any, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0) -> float:
    """Return the unbiased MMD^2 of x (n, d) and y (m, d) under k(a, b) = (a.b / d + 1)^3.

    Up to `subset_size` features a side the estimate uses them all at once; above, it is the mean over `subsets` random
    subsets of that size (section 4 of the paper), seeded. InputError for fewer than 2 features, NaN or infinity.
    """
    x, y = checked_features(x, "first"), checked_features(y, "second")
    if max(len(x), len(y)) <= subset_size:
        return _mmd2(x.double(), y.double())
    values = []
    for k in range(subsets):
        g = generator_for(seed, "kernel_distance", k)
        rows = [torch.randperm(len(s), generator=g)[:subset_size] for s in (x, y)]
        values.append(_mmd2(x[rows[0]].double(), y[rows[1]].double()))
    return sum(values) / subsets


def kid_matrix(generated: Sequence[Any], real: Sequence[Any]) -> np.ndarray:
    """Return the unbiased MMD^2 of every pair of sets, (P, Q) float64: row p = generated[p], column q = real[q].

    generated: P tables (n_p, d); real: Q tables (m_q, d), with n_p, m_q >= 2 (InputError otherwise). Each entry equals
    kernel_distance of its two sets, taken whole; the Gram matrix between all tiles is computed once, in strips of
    rows, and summed by blocks.
    """
    rows = [feature_matrix(x, f"row {p}'s generated") for p, x in enumerate(generated)]
    columns = [feature_matrix(x, f"column {q}'s real") for q, x in enumerate(real)]
    if len({x.shape[1] for x in rows + columns}) != 1:
        raise InputError("kernel distances: the sets of features are not all of one number of dimensions")
    y, column_of = torch.cat(columns), _labels(columns)
    sums = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    strip = max(1, ENTRIES // len(y))
    for strip_x, strip_p in zip(torch.cat(rows).split(strip), _labels(rows).split(strip), strict=True):
        by_column = torch.zeros(len(strip_x), len(columns), dtype=torch.float64)
        sums.index_add_(0, strip_p, by_column.index_add_(1, column_of, _gram(strip_x, y)))
    sizes = torch.outer(*(torch.tensor([len(x) for x in sets], dtype=torch.float64) for sets in (rows, columns)))
    within = [torch.tensor([_within(x) for x in sets], dtype=torch.float64) for sets in (rows, columns)]
    return (within[0][:, None] + within[1] - 2 * sums / sizes).numpy()


def _mmd2(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased MMD^2 (Gretton et al. 2012, eq. 3)."""
    return _within(x) + _within(y) - 2 * float(_gram(x, y).mean())


def _gram(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The cubic kernel between rows of x (n, d) and of y (m, d) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: torch.Tensor) -> float:
    """Mean kernel between two different rows of x (n, d), n >= 2: the Gram matrix without its diagonal, in strips."""
    n, d = x.shape
    total = sum(float(_gram(rows, x).sum()) for rows in x.split(max(1, ENTRIES // n)))
    diagonal = float(((x.square().sum(1) / d + 1) ** 3).sum())
    return (total - diagonal) / (n * (n - 1))


def _labels(sets: Sequence[torch.Tensor]) -> torch.Tensor:
    """The number of the set that each row of the sets, one after the other, belongs to."""
    return torch.repeat_interleave(torch.arange(len(sets)), torch.tensor([len(x) for x in sets]))
