"""Where expression meets noise, in the generator, and where it meets the tile, in the critic. The one place.

    c     = (mu - m) / (s + 1e-6)              mu: encoder mean of a profile; m, s: per dimension, over training donors
    add:    input = sqrt(1 - a^2) noise + a c  noise ~ N(0, I); a = condition_share
    concat: input = [noise, E c]               E: a learned matrix to cond_dim numbers
    critic: score = f(tile) + <P h(tile), V c> / sqrt(cond_dim)

No statistic of the batch enters, so a tile depends on its own noise and its own profile and on nothing else. With c of
unit variance the input has unit variance whatever a is. The published form standardises noise + z over the batch; where
a batch holds one patient, as in all of its generation, that subtracts z itself and the expression is lost exactly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from models.joint import batch_moments
from models.passes import in_passes

LATENT_FLOOR = (
    0.1  # a dimension with a smaller s is inactive: Burda et al. 2016, section 5.2: active where Var(mu) > 0.01
)
NOISE_RANGE = 0.3  # published noise is uniform in [-0.3, 0.3]; RNA-GAN src/wgan_loss.py:100
NOISES = ("normal", "uniform")
STANDARDISE = ("train", "batch")
CONDITIONS = ("add", "concat")
CRITIC_CONDITIONS = ("none", "projection")


# ---- The formulas ----


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
    x = noise + z  # (n, z)
    mean, variance, n = batch_moments(x)
    if n < 2:
        raise InputError("standardise = batch needs two tiles or more in a batch; use standardise = train")
    return (x - mean) / (variance * (n / (n - 1))).sqrt()


def draw_noise(n: int, dims: int, generator: torch.Generator, kind: str = "normal") -> torch.Tensor:
    """Return noise (n, dims) on the generator's device: N(0, 1), or uniform in [-0.3, 0.3] for `kind` "uniform"."""
    if kind == "uniform":
        return (torch.rand(n, dims, generator=generator, device=generator.device) * 2 - 1) * NOISE_RANGE
    return torch.randn(n, dims, generator=generator, device=generator.device)


@dataclass(frozen=True)
class InputRule:
    """How a generator's input is made: which noise, and how a profile enters. Stored with the GAN's settings."""

    noise: str = "normal"
    standardise: str = "train"
    share: float = 0.5
    how: str = "add"

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "InputRule":
        """Return the rule in a GAN's settings; InputError names a value that is not known."""
        how = settings.get("condition") or "add"
        rule = cls(settings["noise"], settings["standardise"], settings["condition_share"], how)
        for key, value, known in (
            ("noise", rule.noise, NOISES),
            ("standardise", rule.standardise, STANDARDISE),
            ("condition", rule.how, CONDITIONS),
        ):
            if value not in known:
                raise InputError(f"{key} = {value!r}: expected {' or '.join(known)}")
        if not 0 <= rule.share <= 1:
            raise InputError(f"condition_share = {rule.share}: expected 0 to 1")
        if rule.standardise == "batch" and rule.how == "concat":
            raise InputError("standardise = batch (published) goes with condition = add only")
        return rule

    def condition(self, mu: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        """Return what a profile with encoder mean `mu` brings to the input: c, or mu itself in the published form."""
        return mu if self.standardise == "batch" else standardise_latent(mu, mean, std)


# ---- In the networks ----


class ConditionedGenerator(nn.Module):
    """A network that draws tiles, and before it the line where expression meets noise.

    `network(x (n, d), pixels (n, p))` -> (n, 3, H, W), meant for [-1, 1]; p = network.pixel_noise numbers of
    noise that are added to single pixels, none in a DCGAN. Of noise (n, noise_dims) the first `encoding_dims` meet the
    expression.
    """

    def __init__(
        self, network: nn.Module, rule: InputRule, encoding_dims: int, latent_dim: int = 0, cond_dim: int = 128
    ) -> None:
        """`latent_dim` 0: a GAN without expression. With `condition` concat E is (latent_dim, cond_dim)."""
        super().__init__()
        self.network, self.rule = network, rule
        self.passes = 1  # in how many parts a batch passes through the network; training sets it (models/passes.py)
        self.encoding_dims, self.noise_dims = encoding_dims, encoding_dims + network.pixel_noise
        if latent_dim and rule.how == "add" and latent_dim != encoding_dims:
            raise InputError(f"encoding_dims = {encoding_dims}: condition = add needs the VAE's {latent_dim}")
        if latent_dim:
            dims = latent_dim if rule.how == "add" else cond_dim
            self.null = nn.Parameter(torch.zeros(dims))  # learned: stands for "no expression"
        if latent_dim and rule.how == "concat":
            self.project = nn.Linear(latent_dim, cond_dim)
            nn.init.normal_(self.project.weight, std=latent_dim**-0.5)  # unit variance where all dimensions are active

    @property
    def conditional(self) -> bool:
        """Whether it takes expression."""
        return hasattr(self, "null")

    def draw(self, n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the noise (n, noise_dims) of `n` tiles, by a CPU generator.

        On another `device` it draws only the seed of the per-pixel noise there, of which a step takes millions: the
        same on every resume, not the same as on the CPU.
        """
        if torch.device(device).type == "cpu":
            return draw_noise(n, self.noise_dims, generator, self.rule.noise)
        noise = draw_noise(n, self.encoding_dims, generator, self.rule.noise).to(device)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        there = torch.Generator(device).manual_seed(seed)
        pixels = self.noise_dims - self.encoding_dims
        return torch.cat([noise, draw_noise(n, pixels, there, self.rule.noise)], 1)

    def enter(
        self, noise: torch.Tensor, c: torch.Tensor | None, keep: torch.Tensor | None = None, guidance: float = 1.0
    ) -> torch.Tensor:
        """Return the network's input (n, d) from noise (n, encoding_dims) and c (n, latent_dim).

        `keep` (n,) bool: tiles whose expression is replaced by the learned null where it is False (c None: all).
        `guidance` g moves the expression along the line from the null through it: null + g (expression - null).
        """
        if not self.conditional:
            return noise
        if self.rule.standardise == "batch":
            if guidance != 1:
                raise InputError("guidance: standardise = batch (published) has no null to move from; leave it at 1")
            return published_infuse(noise, torch.zeros_like(noise) if c is None else c)
        null = self.null.expand(len(noise), -1)
        if c is None:
            e = null
        else:
            e = self.project(c) if self.rule.how == "concat" else c
            e = e if guidance == 1 else null + guidance * (e - null)
            e = e if keep is None else torch.where(keep[:, None], e, null)
        if self.rule.how == "concat":
            return torch.cat([noise, e], 1)
        return infuse(noise, e, self.rule.share)  # expression is added to noise here

    def forward(
        self,
        noise: torch.Tensor,
        c: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """Return tiles (n, 3, H, W), meant for [-1, 1], from noise (n, noise_dims) and c, as `enter` takes them.

        They have the type of the network's weights (bf16 after `to_bf16`), or autocast's.
        """
        noise, pixels = noise[:, : self.encoding_dims], noise[:, self.encoding_dims :]
        dtype = next(self.network.parameters()).dtype
        return in_passes(self.network, self.passes, self.enter(noise, c, keep, guidance).to(dtype), pixels.to(dtype))

    def to_bf16(self) -> None:
        """Make the network's weights bf16: for drawing only. Noise and expression still meet in fp32."""
        self.network.to(torch.bfloat16)


class ConditionedCritic(nn.Module):
    """A critic that may see the expression: f(tile) + <P h(tile), V c> / sqrt(cond_dim). Miyato & Koyama 2018, eq. 3.

    `network` has trunk(images), and head of that, together features(images) -> h; pool(h) -> (n, width), score(h) ->
    (n,). Without `latent_dim` there is only f.
    """

    def __init__(self, network: nn.Module, latent_dim: int = 0, cond_dim: int = 128) -> None:
        super().__init__()
        self.network, self.norm = network, network.norm
        self.passes = 1  # as the generator's
        if latent_dim:
            self.of_tile = nn.Linear(network.width, cond_dim, bias=False)  # P
            self.of_profile = nn.Linear(latent_dim, cond_dim, bias=False)  # V
            nn.init.normal_(self.of_tile.weight, std=network.width**-0.5)
            nn.init.normal_(self.of_profile.weight, std=latent_dim**-0.5)

    @property
    def conditional(self) -> bool:
        """Whether it sees the expression."""
        return hasattr(self, "of_tile")

    def forward(
        self,
        images: torch.Tensor,
        c: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        alone: bool | torch.Tensor = False,
    ) -> torch.Tensor:
        """Return scores (n,) of images (n, 3, H, W) and c (n, latent_dim); f alone where `keep` is False."""
        return self.score(self.features(images, alone), c, keep)

    def features(self, images: torch.Tensor, alone: bool | torch.Tensor = False) -> torch.Tensor:
        """Return network.features(images), in so many passes; the head sees the whole batch, or is told of it."""
        if self.passes == 1 or isinstance(alone, torch.Tensor):
            return self.network.features(images, alone)
        return self.network.head(in_passes(self.network.trunk, self.passes, images), alone)

    @torch.no_grad()
    def spread(self, images: torch.Tensor) -> torch.Tensor:
        """Return what is held fixed of a batch's images where a part of it is judged `alone`."""
        return self.network.spread(in_passes(self.network.trunk, self.passes, images))

    def score(self, h: torch.Tensor, c: torch.Tensor | None = None, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Return the scores (n,) of network.features(images)."""
        plain = self.network.score(h)
        if not self.conditional or c is None:
            return plain
        seen = (self._tile(h) * self.of_profile(c)).sum(1)
        return plain + (seen if keep is None else seen * keep)

    def match(self, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Return (n, n): the projection term of tile i, given as network.features, with profile j."""
        return self._tile(h) @ self.of_profile(c).t()

    def _tile(self, h: torch.Tensor) -> torch.Tensor:
        return self.of_tile(self.network.pool(h)) / self.of_tile.out_features**0.5

    def slope(
        self, images: torch.Tensor, c: torch.Tensor | None = None, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return d score / d image (n, 3, H, W) of a network that has its own `slope`, as forward scores it."""
        if not self.conditional or c is None:
            return self.network.slope(images)
        pull = self.of_profile(c) @ self.of_tile.weight / self.of_tile.out_features**0.5  # (n, width): d score / d pool
        return self.network.slope(images, pull if keep is None else pull * keep[:, None])
