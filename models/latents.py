"""The Gaussian fitted to the latents of a group of profiles: what betaVAE_sample.py draws from.

By the law of total covariance the aggregate posterior of a group, the mixture of N(mu_i, diag(sigma_i^2)), has
covariance cov(mu) + mean(diag(sigma_i^2)). With thousands of dimensions and tens of profiles cov(mu) has few
directions: the leading ones are kept as a factor, the rest and the posterior variances as one number per dimension.
"""

import torch
from torch import Tensor

MAX_RANK = 64  # ours: directions kept per group; the remaining variance goes into `residual`


def latent_summary(mu: Tensor) -> dict[str, Tensor | int]:
    """Return mean and sd per dimension, (z,) each, and the count of latent means `mu` (n, z). One row: sd 0."""
    std = mu.std(0) if len(mu) > 1 else torch.zeros_like(mu[0])
    return {"mean": mu.mean(0).cpu(), "std": std.cpu(), "n": len(mu)}


def fit_gaussian(mu: Tensor, logvar: Tensor, max_rank: int = MAX_RANK) -> dict[str, Tensor | int]:
    """Fit a Gaussian to the posteriors N(mu_i, exp(logvar_i)), both (n, z).

    Returns mean (z,), std (z,) of mu, n, factor (k, z) with k <= min(n - 1, max_rank), residual (z,) >= 0: a draw is
    mean + e @ factor + residual * e' with e, e' ~ N(0, I).
    """
    n, summary = len(mu), latent_summary(mu)
    centred = (mu - mu.mean(0)) / max(n - 1, 1) ** 0.5
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    factor = (singular[:, None] * directions)[: min(n - 1, max_rank)]  # (k, z)
    left = centred.square().sum(0) - factor.square().sum(0)
    residual = (left.clamp(min=0) + logvar.exp().mean(0)).sqrt()
    return summary | {"factor": factor.contiguous().cpu(), "residual": residual.cpu()}


def draw_gaussian(gaussian: dict[str, Tensor | int], generator: torch.Generator) -> Tensor:
    """Return one draw (z,) of what `fit_gaussian` returned."""
    factor, residual = gaussian["factor"], gaussian["residual"]
    along = torch.randn(len(factor), generator=generator)
    across = torch.randn(len(residual), generator=generator)
    return gaussian["mean"] + along @ factor + residual * across
