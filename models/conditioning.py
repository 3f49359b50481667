"""Where expression meets noise: the generator's input. The one place; training, sampling and metrics all use it.

    c     = (mu - m) / (s + 1e-6)              mu: encoder mean of a profile; m, s: per dimension, over training donors
    input = sqrt(1 - a^2) noise + a c          noise ~ N(0, I); a = condition_share

No statistic of the batch enters, so a tile depends on its own noise and its own profile and on nothing else. With c of
unit variance the input has unit variance whatever a is. The published form standardises noise + z over the batch; where
a batch holds one patient, as in all of its generation, that subtracts z itself and the expression is lost exactly.
"""

from dataclasses import dataclass
from typing import Any

import torch

from common.errors import InputError

LATENT_FLOOR = (
    0.1  # a dimension with a smaller s is inactive: Burda et al. 2016, section 5.2: active where Var(mu) > 0.01
)
NOISE_RANGE = 0.3  # published noise is uniform in [-0.3, 0.3]; RNA-GAN src/wgan_loss.py:100
NOISES = ("normal", "uniform")
STANDARDISE = ("train", "batch")


def standardise_latent(
    mu: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, floor: float = LATENT_FLOOR
) -> torch.Tensor:
    """Return c (n, z): encoder means `mu` (n, z) or (z,) in units of the training donors' spread.

    `mean`, `std`: (z,), over training donors. Dimensions with `std` under `floor` carry no information on the profile
    (their spread is numerical noise, which the division would blow up) and are 0.
    """
    return torch.where(std < floor, 0.0, (mu - mean) / (std + 1e-6))


def infuse(noise: torch.Tensor, c: torch.Tensor, share: float) -> torch.Tensor:
    """Return the generator's input (n, z): sqrt(1 - share^2) noise + share c, for noise (n, z) and c (n, z) or (z,)."""
    if not 0 <= share <= 1:
        raise InputError(f"condition_share = {share}: expected 0 (noise only) to 1 (expression only)")
    return (1 - share**2) ** 0.5 * noise + share * c


def published_infuse(noise: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return noise (n, z) + z, standardised over the batch: the published form, kept to be compared with.

    With one profile in the batch z is a constant of each column and cancels. RNA-GAN src/wgan_loss.py:105-106.
    """
    if len(noise) < 2:
        raise InputError("standardise = batch needs two tiles or more in a batch; use standardise = train")
    x = noise + z  # (n, z)
    return (x - x.mean(0)) / x.std(0)


def draw_noise(n: int, dims: int, generator: torch.Generator, kind: str = "normal") -> torch.Tensor:
    """Return noise (n, dims): N(0, 1), or uniform in [-0.3, 0.3] where `kind` is "uniform"."""
    if kind == "uniform":
        return (torch.rand(n, dims, generator=generator) * 2 - 1) * NOISE_RANGE
    return torch.randn(n, dims, generator=generator)


@dataclass(frozen=True)
class InputRule:
    """How a generator's input is made: which noise, and how a profile enters. Stored with the GAN's settings."""

    noise: str = "normal"
    standardise: str = "train"
    share: float = 0.5

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "InputRule":
        """Return the rule in a GAN's settings; InputError names a value that is not known."""
        for key, known in (("noise", NOISES), ("standardise", STANDARDISE)):
            if settings[key] not in known:
                raise InputError(f"{key} = {settings[key]!r}: expected {' or '.join(known)}")
        if not 0 <= settings["condition_share"] <= 1:
            raise InputError(f"condition_share = {settings['condition_share']}: expected 0 to 1")
        return cls(settings["noise"], settings["standardise"], settings["condition_share"])

    def condition(self, mu: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        """Return what a profile with encoder mean `mu` brings to the input: c, or mu itself in the published form."""
        return mu if self.standardise == "batch" else standardise_latent(mu, mean, std)

    def draw(self, n: int, dims: int, generator: torch.Generator) -> torch.Tensor:
        """Return noise (n, dims) of this rule's kind."""
        return draw_noise(n, dims, generator, self.noise)

    def __call__(self, noise: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the generator's input (n, z); `condition` (n, z), (z,) or None (the noise alone)."""
        if condition is None:
            return noise
        if self.standardise == "batch":
            return published_infuse(noise, condition)
        return infuse(noise, condition, self.share)
