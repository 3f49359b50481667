"""Kernel distance between two sets of features: the unbiased squared MMD with a cubic kernel (Binkowski et al. 2018).

Called KID with Inception features. Unlike the Fréchet distance its expectation does not depend on n, so it is the one
to read where tiles are few; it may be slightly negative for sets of one distribution.
"""

from typing import Any

import torch

from common.run import generator_for
from metrics.frechet import feature_matrix


def kernel_distance(x: Any, y: Any, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0) -> float:
    """Return the unbiased MMD^2 of x (n, d) and y (m, d) under k(a, b) = (a.b / d + 1)^3.

    Up to `subset_size` features a side the estimate uses them all at once; above, it is the mean over `subsets` random
    subsets of that size (section 4 of the paper), seeded. InputError for fewer than 2 features, NaN or infinity.
    """
    x, y = feature_matrix(x, "first"), feature_matrix(y, "second")
    if max(len(x), len(y)) <= subset_size:
        return _mmd2(x, y)
    values = []
    for k in range(subsets):
        g = generator_for(seed, "kernel_distance", k)
        rows = [torch.randperm(len(s), generator=g)[:subset_size] for s in (x, y)]
        values.append(_mmd2(x[rows[0]], y[rows[1]]))
    return sum(values) / subsets


def _mmd2(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased MMD^2: the diagonals of the two within-set Gram matrices are left out (Gretton et al. 2012, eq. 3)."""
    n, m, d = len(x), len(y), x.shape[1]
    within_x, within_y, between = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    mean_x = (within_x.sum() - within_x.diagonal().sum()) / (n * (n - 1))
    mean_y = (within_y.sum() - within_y.diagonal().sum()) / (m * (m - 1))
    return float(mean_x + mean_y - 2 * between.mean())
