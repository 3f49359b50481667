"""Precision and recall of a set of features against another (Kynkäänniemi et al. 2019).

A set's manifold is the union of balls around its features, each reaching to that feature's k-th nearest neighbour in
the set. Precision: the share of generated features inside the real manifold (how plausible they are). Recall: the share
of real features inside the generated manifold (how much of the variety is covered).
"""

from typing import Any

import torch

from common.errors import InputError
from metrics.frechet import feature_matrix

ROWS = 2000  # rows of a distance matrix held at a time


def precision_recall(real: Any, generated: Any, k: int = 3) -> tuple[float, float]:
    """Return (precision, recall), both in [0, 1], of generated (m, d) against real (n, d); k = 3 as in the paper.

    InputError where a side has not more than k features, or holds NaN or infinity. Swapping the sides swaps the two
    values. Both depend on n and m: compare them at equal numbers.
    """
    real, generated = feature_matrix(real, "first"), feature_matrix(generated, "second")
    for features, which in ((real, "first"), (generated, "second")):
        if len(features) <= k:
            raise InputError(
                f"{which} set of features: precision and recall need more than k = {k} images, found {len(features)}"
            )
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _share_inside(points: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    radii = torch.cat(
        [_distances(rows, manifold).kthvalue(k + 1).values for rows in manifold.split(ROWS)]
    )  # +1: itself
    inside = [(_distances(rows, manifold) <= radii).any(1) for rows in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (len(a), len(b)) by differences: equal features are at exactly 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
