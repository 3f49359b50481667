"""How far a profile lies from the training cloud: what percentile of held-out donors' own distances that is.

Two distances, as in the outlier map of robust PCA (Hubert, Rousseeuw & Vanden Branden 2005, section 3), because each
misses what the other sees:
    latent   how far along what the model knows: the root mean square Mahalanobis distance of the encoder's mean mu from
             the nearest tissue's cloud, the Gaussian of models/latents.py: mean m, covariance factor' factor +
             residual^2. The posterior's own variance in `residual` is what shrinks it where donors are fewer than
             dimensions; a dimension that the encoder does not use, as wide as the prior, counts for next to nothing.
    misfit   how far off what the model knows: the root mean square error of the reconstruction, z-scores, over the
             genes that were measured. A shift of single genes, as between platforms, hardly moves mu: on the demo's
             tables of another platform the latent distance is a held-out donor's, and the misfit is not.
A distance says little by itself. It is compared with those of the validation donors, whom the weights were not fitted
to, as they were not to a new profile. Their logarithms are taken as normal, and the percentile is that of a further
draw after so many (Student's t, the prediction interval of a normal sample: Hahn & Meeker 1991, section 4.7), which
allows for their number. No donor's latent is stored, from which the decoder would draw the donor's profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FAR_PERCENTILE = 99.5  # beyond it a profile is called far; of the same cohort one in 200 is, by each distance. Ours
LEAST_HELD_OUT = 3  # validation profiles: fewer tell no spread
KINDS = ("latent", "misfit")


@dataclass(frozen=True)
class Distances:
    """Distances of n profiles by kind, (n,) each, in units of the validation profiles' geometric mean; percentiles."""

    times: dict[str, np.ndarray]
    percentiles: dict[str, np.ndarray]
    nearest: list[str]  # the tissue whose cloud is nearest
    own: dict[str, np.ndarray]  # kind -> (m,): the validation profiles', in the same unit
    limits: dict[str, float]  # kind -> the distance at FAR_PERCENTILE

    @property
    def held_out(self) -> int:
        """Return how many validation profiles they are compared with."""
        return len(self.own["latent"])

    @property
    def percentile(self) -> np.ndarray:
        """Return (n,): the larger of the two percentiles."""
        return np.max([self.percentiles[kind] for kind in KINDS], axis=0)

    @property
    def far(self) -> np.ndarray:
        """Return (n,) bool: beyond FAR_PERCENTILE."""
        return self.percentile > FAR_PERCENTILE

    def describe(self, row: int) -> dict[str, Any]:
        """Return what a report says of one profile."""
        said: dict[str, Any] = {"percentile": round(float(self.percentile[row]), 2), "far": bool(self.far[row])}
        for kind in KINDS:
            said[kind] = round(float(self.times[kind][row]), 3)
            said[f"{kind}_percentile"] = round(float(self.percentiles[kind][row]), 2)
        return said | {"nearest": self.nearest[row]}

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what a file says of profiles `names` and of how the numbers are to be read."""
        return {
            "unit": f"times the geometric mean of {self.held_out} validation profiles' own distance",
            "far_beyond_percentile": FAR_PERCENTILE,
            "held_out": self.held_out,
            "far": [name for name, far in zip(names, self.far, strict=True) if far],
            "median_percentile": round(float(np.median(self.percentile)), 2),
            "profiles": {name: self.describe(row) for row, name in enumerate(names)},
        }

    def summary(self, names: Sequence[str]) -> str:
        """Return one line: of one profile its numbers, of several the median and how many are far."""
        own = f"{self.held_out} held-out donors' profiles"
        worst = int(np.max([self.times[kind] / self.limits[kind] for kind in KINDS], axis=0).argmax())
        numbers = ", ".join(f"{kind} {self.times[kind][worst]:.2f} times theirs" for kind in KINDS)
        if len(names) == 1:
            return f"percentile {self.percentile[0]:.1f} of {own} ({numbers}; nearest: {self.nearest[0]})"
        return (
            f"{int(self.far.sum())} of {len(names)} profiles beyond percentile {FAR_PERCENTILE:g} of {own}; median "
            f"percentile {np.median(self.percentile):.1f}; farthest: {names[worst]} ({numbers})"
        )


class TrainingCloud:
    """The clouds of the tissues, and the validation profiles' distances from them."""

    def __init__(self, by_tissue: Mapping[str, Mapping[str, Any]], held_out: Mapping[str, Tensor]) -> None:
        """`by_tissue`: of models.latents.fit_gaussian; `held_out`: kind -> (m,) distances, m >= LEAST_HELD_OUT."""
        self.by_tissue = by_tissue
        self.logs = {kind: np.log(np.maximum(held_out[kind].double().numpy(), 1e-12)) for kind in KINDS}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "TrainingCloud | None":
        """Return the cloud that a beta-VAE's checkpoint holds; None in an older one, or of too few validation rows."""
        held_out = state.get("held_out_distances")
        return cls(state["by_tissue"], held_out) if held_out and len(held_out["latent"]) >= LEAST_HELD_OUT else None

    def distances(self, mu: Tensor, misfit: Tensor) -> Distances:
        """Return the distances of profiles with encoder means `mu` (n, z) and reconstruction errors `misfit` (n,)."""
        from scipy.special import stdtr, stdtrit  # a fifth of a second to import, which few commands need

        latent, nearest = nearest_cloud(mu, self.by_tissue)
        times, percentiles, own, limits = {}, {}, {}, {}
        for kind, found in (("latent", latent), ("misfit", misfit)):
            logs, m = self.logs[kind], len(self.logs[kind])
            beyond = np.log(np.maximum(found.double().numpy(), 1e-12)) - logs.mean()
            spread = max(float(logs.std(ddof=1)), 1e-6) * np.sqrt(1 + 1 / m)
            times[kind], percentiles[kind] = np.exp(beyond), 100 * stdtr(m - 1, beyond / spread)
            own[kind] = np.exp(logs - logs.mean())
            limits[kind] = float(np.exp(spread * stdtrit(m - 1, FAR_PERCENTILE / 100)))
        return Distances(times, percentiles, nearest, own, limits)


def nearest_cloud(mu: Tensor, by_tissue: Mapping[str, Mapping[str, Any]]) -> tuple[Tensor, list[str]]:
    """Return the distance (n,) of encoder means `mu` (n, z) from the nearest tissue's cloud, and the tissue's name."""
    nearest = torch.stack([mahalanobis(mu, gaussian) for gaussian in by_tissue.values()]).min(0)
    names = list(by_tissue)
    return nearest.values, [names[i] for i in nearest.indices]


def mahalanobis(mu: Tensor, gaussian: Mapping[str, Any]) -> Tensor:
    """Return sqrt((mu - m)' S^-1 (mu - m) / z), (n,), for `mu` (n, z) and a Gaussian of models.latents.fit_gaussian.

    S = factor' factor + diag(residual^2), by Woodbury's identity: no (z, z) matrix is made.
    """
    residual = gaussian["residual"].double()
    off = (mu.double() - gaussian["mean"]) / residual  # (n, z)
    factor = gaussian["factor"].double() / residual  # (k, z)
    along = off @ factor.T  # (n, k)
    inner = torch.eye(len(factor), dtype=torch.float64) + factor @ factor.T
    explained = (along * torch.linalg.solve(inner, along.T).T).sum(1)
    return ((off.square().sum(1) - explained).clamp(min=0) / mu.shape[1]).sqrt()
