"""Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017, eq. 6).

    d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

No matrix square root is taken. With any factor F of a covariance, S = F^T F, the last trace is the sum of the singular
values of F1 F2^T, which cannot become complex. For n features of d dimensions, n <= d, the centred features over
sqrt(n - 1) are such a factor (the Gram form: an n x n problem instead of d x d); otherwise the covariance gives one by
its eigenvectors. Everything is float64: in float32 the small singular values are wrong by percents of the distance. Of
more than d features, ROWS at a time are copied to float64: memory beside the features does not grow with n.
"""

from typing import Any

import numpy as np
import torch

from common.errors import InputError

ROWS = 4096  # features that are float64 at a time; ours


def frechet_distance(x: Any, y: Any) -> float:
    """Return the squared Fréchet distance d^2 >= 0 ("FID" with Inception features) of two sets of features.

    x: (n, d), y: (m, d), arrays or tensors, finite, n and m >= 2 (InputError otherwise). Identical sets give about 0.
    Where n or m is not large against d the value is biased upwards (see small_sample_note).
    """
    x, y = checked_features(x, "first"), checked_features(y, "second")
    return _distance(_factor(x), _factor(y))


def frechet_from_statistics(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """Return the same d^2 from means (d,) and covariances (d, d); singular covariances are allowed, NaN is refused."""
    return _distance(_checked_statistics(mu1, sigma1), _checked_statistics(mu2, sigma2))


def frechet_to_statistics(x: Any, mu: Any, sigma: Any) -> float:
    """Return d^2 between features x (n, d) and a Gaussian known by its mean (d,) and covariance (d, d)."""
    return _distance(_factor(checked_features(x, "first")), _checked_statistics(mu, sigma))


def statistics_of(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (d,) and covariance (d, d; denominator n - 1) of features x (n, d), float64."""
    mean, sigma = _moments(checked_features(x, "first"))
    return mean.numpy(), sigma.numpy()


def small_sample_note(n: int, dim: int) -> str | None:
    """Return a sentence for the user where n features are few for a distance in `dim` dimensions, else None."""
    if n > dim:
        return None
    return (
        f"n = {n} is not above the {dim} feature dimensions: the Fréchet distance is biased upwards and depends on n; "
        "compare it only at equal n, and prefer KID"
    )


def feature_matrix(x: Any, which: str) -> torch.Tensor:
    """Return x as a float64 (n, d) tensor on the CPU; InputError for another shape, n < 2, NaN or infinity."""
    return checked_features(x, which).double()


def checked_features(x: Any, which: str) -> torch.Tensor:
    """Return x as a tensor (n, d) on the CPU, of its own type and not copied where it is there; InputError as above."""
    x = np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x  # a tensor has no negative strides
    x = torch.as_tensor(x).detach().cpu()
    if x.ndim != 2:
        raise InputError(f"{which} set of features: expected a table (n, d), found shape {tuple(x.shape)}")
    if len(x) < 2:
        raise InputError(
            f"{which} set of features: {len(x)} image(s); a distance between sets needs at least 2 on each side"
        )
    finite = torch.cat([torch.isfinite(rows).all(1) for rows in x.split(ROWS)])  # (n,)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(
            f"{which} set of features: row {row} holds NaN or infinity; check that image and the extractor"
        )
    return x


def _factor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, d) -> mean (d,), factor (r, d) of the covariance, r = min(n, rank)."""
    n, d = x.shape
    if n > d:
        mean, sigma = _moments(x)
        return mean, _root(sigma)
    mean = x.double().mean(0)
    return mean, (x.double() - mean) / (n - 1) ** 0.5


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, d) -> mean (d,) and covariance (d, d; denominator n - 1), float64, ROWS at a time."""
    n, d = x.shape
    mean = sum((rows.double().sum(0) for rows in x.split(ROWS)), torch.zeros(d, dtype=torch.float64)) / n
    sigma = torch.zeros(d, d, dtype=torch.float64)
    for rows in x.split(ROWS):
        centred = rows.double() - mean
        sigma.addmm_(centred.T, centred)
    return mean, sigma / (n - 1)


def _root(sigma: torch.Tensor) -> torch.Tensor:
    """Covariance (d, d) -> factor (r, d): scaled eigenvectors; what is below rounding error is dropped."""
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    keep = values > values[-1].clamp(min=0) * len(sigma) * torch.finfo(torch.float64).eps
    return (vectors[:, keep] * values[keep].sqrt()).T


def _distance(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> float:
    (mean_a, factor_a), (mean_b, factor_b) = a, b
    if len(mean_a) != len(mean_b):
        raise InputError(
            f"features of {len(mean_a)} and of {len(mean_b)} dimensions cannot be compared; use one extractor for both"
        )
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()  # tr (S1 S2)^(1/2)
    squared = (mean_a - mean_b).square().sum() + factor_a.square().sum() + factor_b.square().sum() - 2 * cross
    return max(float(squared), 0.0)  # equal sets: rounding may leave -1e-15


def _checked_statistics(mu: Any, sigma: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mu, sigma = torch.as_tensor(mu).to("cpu", torch.float64), torch.as_tensor(sigma).to("cpu", torch.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise InputError(
            f"statistics: expected a mean (d,) and a covariance (d, d), found {tuple(mu.shape)}, {tuple(sigma.shape)}"
        )
    if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
        raise InputError("statistics: mean or covariance holds NaN or infinity; compute them again")
    return mu, _root(sigma)
