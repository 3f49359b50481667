"""GAN losses as functions of the critic's scores, the gradient penalties, and the two updates of a training step.

wgan = the published GAN's loss: Wasserstein, penalty and weight clipping; wgangp = penalty only; wganvae = the
published RNA-GAN's: penalty only, the critic blind to the expression. Compare wgangp with wganvae: they differ in the
generator's input alone. wgangpvae = wganvae with a critic that sees the expression; rpgan, rpganvae = relativistic
pairs with zero-centred penalties, without and with expression.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from common.distributed import current, joint_sum, sum_gradients
from common.errors import InputError
from models.passes import pieces

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
    """Return how well real tiles, given as features h, tell their own profile from the other patients' in the batch.

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


# ---- The two updates ----


def critic_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: GANLoss,
    real: torch.Tensor,
    fake: torch.Tensor,
    epsilon: torch.Tensor,
    shown: Shown = NOTHING_SHOWN,
    *,
    penalty_weight: float = 10.0,
    penalty_per: str = "image",
    gamma: float = 2.0,
    penalise: int = 1,
    signs: torch.Tensor | None = None,
    mismatched_weight: float = 0.0,
    clip: float = 0.01,
    share: float = 1.0,
    autocast: torch.autocast | nullcontext = nullcontext(),  # noqa: B008 (stateless)
) -> dict[str, torch.Tensor]:
    """Update the critic once, on one fake batch for both loss and penalty; return the parts of its loss.

    `real`, `fake` (n, 3, H, W) in [-1, 1]; no gradient reaches the generator. Penalties are computed in fp32 whatever
    `autocast` says: their second derivative loses too much in bf16. `penalise` weights the zero-centred penalties: they
    may be left out of most steps (0) and count for all of these in one (their number); Karras et al. 2020, section 3.1.
    With `signs` (2, n, 3, H, W) they are estimated by differences along these, of real and of generated tiles.
    `share`: how much of the batch these n tiles are; gradients and the parts returned are summed over the ranks.
    """
    critic.requires_grad_(True)
    fake = fake.detach().float()
    with autocast:
        if critic.norm == "none" and critic.passes == 1:  # images do not meet: one pass for both
            of_real, of_fake = critic.features(torch.cat([real, fake])).chunk(2)
        else:
            of_real, of_fake = critic.features(real), critic.features(fake)
        on_real = critic.score(of_real, shown.c, shown.keep).float()
        on_fake = critic.score(of_fake, shown.c, shown.keep).float()
    parts = {"critic": share * loss.critic(on_real, on_fake)}
    total = parts["critic"]
    if mismatched_weight and critic.conditional:
        parts["mismatched"] = mismatched_pairs(critic, of_real.float(), shown)
        total = total + mismatched_weight * parts["mismatched"]
    optimizer.zero_grad(set_to_none=True)
    if loss.penalty == "slope":

        def slope(rows: slice, alone: bool | torch.Tensor) -> torch.Tensor:
            tiles = real[rows], fake[rows], epsilon[rows]
            return gradient_penalty(critic, *tiles, penalty_per, shown.part(rows), alone)

        parts["penalty"] = share * _in_passes(critic, share * penalty_weight, between(real, fake, epsilon), slope)
        total = total + penalty_weight * parts["penalty"]
    elif loss.penalty == "zero" and penalise:
        pairs, weight = zip((real, fake), (None, None) if signs is None else signs, strict=True), penalise * gamma
        parts["penalty"] = share * sum(_zero_in_passes(critic, share * weight, x, shown, v) for x, v in pairs)
        total = total + weight * parts["penalty"]
    total.backward()
    sum_gradients(optimizer)
    optimizer.step()
    if loss.clip:
        with torch.no_grad():
            for weight in critic.parameters():
                weight.clamp_(-clip, clip)
    return _of_all_ranks(parts | {"real_score": share * on_real.mean()})


def generator_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: GANLoss,
    fake: torch.Tensor,
    shown: Shown = NOTHING_SHOWN,
    real: torch.Tensor | None = None,
    *,
    share: float = 1.0,
    autocast: torch.autocast | nullcontext = nullcontext(),  # noqa: B008 (stateless)
) -> dict[str, torch.Tensor]:
    """Update the generator once through `fake` (n, 3, H, W), which it made; the critic is frozen meanwhile.

    `real` (n, 3, H, W): the tiles that a paired loss compares them with. `share`: as for critic_step.
    """
    critic.requires_grad_(False)
    with autocast:
        scores = critic(fake, shown.c, shown.keep)
        with torch.no_grad():
            on_real = critic(real, shown.c, shown.keep).float() if loss.paired else None
    total = share * loss.generator(scores.float(), on_real)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    sum_gradients(optimizer)
    optimizer.step()
    critic.requires_grad_(True)
    return _of_all_ranks({"generator": total})


def _in_passes(
    critic: nn.Module,
    weight: float,
    images: torch.Tensor,
    penalty: Callable[[slice, bool | torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return penalty(rows, alone), a mean over `images`: a term of the loss, or, in several passes, a plain number.

    Then `weight` times the gradients of each pass are added here, one after another: what is differentiated twice
    cannot be computed again in the backward pass, as the rest is.
    """
    if critic.passes == 1:
        return penalty(slice(0, len(images)), True)
    alone, total = critic.spread(images), images.new_zeros(())
    for rows in pieces(len(images), critic.passes):
        part = penalty(rows, alone) * ((rows.stop - rows.start) / len(images))
        (weight * part).backward()
        total += part.detach()
    return total


def _zero_in_passes(
    critic: nn.Module, weight: float, images: torch.Tensor, shown: Shown, signs: torch.Tensor | None
) -> torch.Tensor:
    """Return zero_penalty likewise; along `signs` it is differentiated once, and so goes in passes by itself."""
    if signs is not None:
        return zero_penalty(critic, images, shown, signs)

    def penalty(rows: slice, alone: bool | torch.Tensor) -> torch.Tensor:
        return zero_penalty(critic, images[rows], shown.part(rows), alone=alone)

    return _in_passes(critic, weight, images, penalty)


def _of_all_ranks(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parts of a batch's loss from this rank's share of each."""
    return dict(zip(parts, current().sum(torch.stack([x.detach() for x in parts.values()])).unbind(), strict=True))
