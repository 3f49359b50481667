"""GAN losses as functions of the critic's scores, and the gradient penalties.

wgan = the published GAN's loss: Wasserstein, penalty and weight clipping; wgangp = penalty only; wganvae = the
published RNA-GAN's: penalty only, the critic blind to the expression. Compare wgangp with wganvae: they differ in the
generator's input alone. wgangpvae = wganvae with a critic that sees the expression; rpgan, rpganvae = relativistic
pairs with zero-centred penalties, without and with expression.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError
from common.joint_sums import joint_sum

PENALTY_PER = ("image", "batch")
PENALTY_FORMS = ("exact", "difference")
STEP = 0.01  # h of the difference, per pixel, of the range [-1, 1]; ours
Scores = torch.Tensor  # (n,), the critic's output, higher is more real


def minimax_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Cross-entropy of real against generated. Goodfellow et al. 2014, eq. 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator(fake: Scores, real: Scores | None = None) -> torch.Tensor:
    """The non-saturating form: maximise log D(fake). Goodfellow et al. 2014, section 3."""
    return F.softplus(-fake).mean()


def lsgan_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Least squares with targets 1 and 0. Mao et al. 2017, eq. 2 and 9."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def lsgan_generator(fake: Scores, real: Scores | None = None) -> torch.Tensor:
    """Least squares with target 1. Mao et al. 2017, eq. 9."""
    return 0.5 * (fake - 1).square().mean()


def wasserstein_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Minus the estimated Wasserstein distance. Arjovsky et al. 2017, eq. 3."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Scores, real: Scores | None = None) -> torch.Tensor:
    """Arjovsky et al. 2017, algorithm 1, line 10."""
    return -fake.mean()


def relativistic_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Each real tile should score above the generated one that it is paired with. Huang et al. 2024, eq. 2."""
    return F.softplus(fake - real).mean()


def relativistic_generator(fake: Scores, real: Scores) -> torch.Tensor:
    """Each generated tile should score above the real one that it is paired with. Huang et al. 2024, eq. 2."""
    return F.softplus(real - fake).mean()


@dataclass(frozen=True)
class GANLoss:
    """A loss by name: its two functions, its penalty ("slope", "zero" or none), and what goes with it.

    clip: the critic's weights are clipped. paired: the generator's part needs the real tiles' scores.
    sees: by default the critic sees the expression, with mismatched pairs, jitter and dropout of the expression.
    """

    critic: Callable[[Scores, Scores], torch.Tensor]
    generator: Callable[[Scores, Scores | None], torch.Tensor]
    penalty: str = ""
    clip: bool = False
    paired: bool = False
    sees: bool = False


LOSSES = {
    "minimax": GANLoss(minimax_critic, minimax_generator),
    "lsgan": GANLoss(lsgan_critic, lsgan_generator),
    "wgan": GANLoss(wasserstein_critic, wasserstein_generator, "slope", clip=True),
    "wgangp": GANLoss(wasserstein_critic, wasserstein_generator, "slope"),
    "rpgan": GANLoss(relativistic_critic, relativistic_generator, "zero", paired=True),
    "wganvae": GANLoss(wasserstein_critic, wasserstein_generator, "slope"),
    "wgangpvae": GANLoss(wasserstein_critic, wasserstein_generator, "slope", sees=True),
    "rpganvae": GANLoss(relativistic_critic, relativistic_generator, "zero", paired=True, sees=True),
}


@dataclass(frozen=True)
class Shown:
    """The expression that the tiles of a batch are judged with; real and generated tile i have the same.

    c (n, z); keep (n,) bool: False where the generator was given none; patients (n,): whose each tile is.
    `whole`: of the whole batch, where these n are one rank's share of it, from row `first` on.
    """

    c: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    patients: torch.Tensor | None = None
    whole: "Shown | None" = None
    first: int = 0

    def part(self, rows: slice) -> "Shown":
        """Return that of some of the tiles."""
        some = [x if x is None else x[rows] for x in (self.c, self.keep, self.patients)]
        return Shown(*some, self.whole or self, self.first + rows.start)


NOTHING_SHOWN = Shown()


def is_conditional(loss_type: str) -> bool:
    """Return whether a run with this loss is given expression: exactly when the name ends in `vae`."""
    return loss_type.endswith("vae")


# ---- Penalties ----


def gradient_penalty(
    critic: nn.Module,
    real: torch.Tensor,
    fake: torch.Tensor,
    epsilon: torch.Tensor,
    per: str = "image",
    shown: Shown = NOTHING_SHOWN,
    alone: bool | torch.Tensor = True,
) -> torch.Tensor:
    """Return mean (|d critic / d x| - 1)^2 between real and fake (n, 3, H, W). Gulrajani et al. 2017, eq. 3.

    `epsilon` (n,) in [0, 1] places x between the two. `per` "image": one norm and one epsilon each; "batch": one norm
    and epsilon[0] for the whole batch, of all ranks, as published. `alone`: see ResidualCritic.head.
    """
    if per not in PENALTY_PER:
        raise InputError(f"penalty_per = {per!r}: expected {' or '.join(PENALTY_PER)}")
    x = between(real, fake, epsilon[:1] if per == "batch" else epsilon)
    if critic.norm == "none":
        slope = critic.slope(x, shown.c, shown.keep)  # (n, 3, H, W)
    else:
        slope = _slope(critic, x, shown, alone)
    norm = joint_sum(slope.square().sum()).sqrt() if per == "batch" else slope.flatten(1).norm(dim=1)
    return (norm - 1).square().mean()


def between(real: torch.Tensor, fake: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """Return the images (n, 3, H, W) at `epsilon` (n,) or (1,) on the way from fake to real."""
    mix = epsilon.reshape(-1, 1, 1, 1)
    return mix * real + (1 - mix) * fake


def zero_penalty(
    critic: nn.Module,
    images: torch.Tensor,
    shown: Shown = NOTHING_SHOWN,
    signs: torch.Tensor | None = None,
    alone: bool | torch.Tensor = True,
) -> torch.Tensor:
    """Return mean |d critic / d image|^2 / 2: R1 on real, R2 on generated tiles. Mescheder et al. 2018, eq. 9, 10.

    With `signs` v (n, 3, H, W), random -1 and 1, an estimate without second derivatives: the mean of
    ((critic(image + h v) - critic(image - h v)) / 2 h)^2 / 2, whose expectation over v is the above for small h.
    """
    if signs is None:
        return _slope(critic, images, shown, alone).square().sum((1, 2, 3)).mean() / 2
    ends = [critic(images.detach() + h * signs, shown.c, shown.keep, alone=True) for h in (STEP, -STEP)]
    return ((ends[0] - ends[1]) / (2 * STEP)).square().mean() / 2


def _slope(critic: nn.Module, images: torch.Tensor, shown: Shown, alone: bool | torch.Tensor) -> torch.Tensor:
    x = images.detach().requires_grad_(True)
    return torch.autograd.grad(critic(x, shown.c, shown.keep, alone=alone).sum(), x, create_graph=True)[0]


def mismatched_pairs(critic: nn.Module, h: torch.Tensor, shown: Shown) -> torch.Tensor:
    """Return how well real tiles, given as features h (n, ...), tell their own profile from others' in the batch.

    mean softplus(s_ij - s_ii), s_ij: the projection of tile i with profile j: the relativistic loss between a matched
    and a mismatched real pair, in which f(tile) cancels. Pairs of one patient are left out. 0 without another patient.
    With a share of the batch, its part of the mean over all: every tile meets the profiles of the whole batch.
    """
    whole = shown.whole or shown
    s = critic.match(h, whole.c)  # (n, n), or (share, n)
    own = s[:, shown.first : shown.first + len(s)].diagonal()
    others = whole.patients[:, None] != whole.patients[None, :]  # (n, n)
    mine = others[shown.first : shown.first + len(s)]
    return (F.softplus(s - own[:, None]) * mine).sum() / others.sum().clamp(min=1)
