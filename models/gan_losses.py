"""GAN losses as functions of the critic's scores, the gradient penalty, and the two updates of a training step.

wgan = the published GAN's loss: Wasserstein, penalty and weight clipping; wgangp = penalty only; wganvae = the
published RNA-GAN's: penalty only, with the conditioning of models/conditioning.py. Compare wgangp with wganvae: they
differ in the conditioning alone.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError

PENALTY_PER = ("image", "batch")
Scores = torch.Tensor  # (n,), the critic's output, higher is more real


def minimax_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Cross-entropy of real against generated. Goodfellow et al. 2014, eq. 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator(fake: Scores) -> torch.Tensor:
    """The non-saturating form: maximise log D(fake). Goodfellow et al. 2014, section 3."""
    return F.softplus(-fake).mean()


def lsgan_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Least squares with targets 1 and 0. Mao et al. 2017, eq. 2 and 9."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def lsgan_generator(fake: Scores) -> torch.Tensor:
    """Least squares with target 1. Mao et al. 2017, eq. 9."""
    return 0.5 * (fake - 1).square().mean()


def wasserstein_critic(real: Scores, fake: Scores) -> torch.Tensor:
    """Minus the estimated Wasserstein distance. Arjovsky et al. 2017, eq. 3."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Scores) -> torch.Tensor:
    """Arjovsky et al. 2017, algorithm 1, line 10."""
    return -fake.mean()


@dataclass(frozen=True)
class GANLoss:
    """A loss by name: its two functions, whether it has a gradient penalty, whether weights are clipped."""

    critic: Callable[[Scores, Scores], torch.Tensor]
    generator: Callable[[Scores], torch.Tensor]
    penalty: bool = False
    clip: bool = False


LOSSES = {
    "minimax": GANLoss(minimax_critic, minimax_generator),
    "lsgan": GANLoss(lsgan_critic, lsgan_generator),
    "wgan": GANLoss(wasserstein_critic, wasserstein_generator, penalty=True, clip=True),
    "wgangp": GANLoss(wasserstein_critic, wasserstein_generator, penalty=True),
    "wganvae": GANLoss(wasserstein_critic, wasserstein_generator, penalty=True),
}


def is_conditional(loss_type: str) -> bool:
    """Return whether a run with this loss is given expression: exactly when the name ends in `vae`."""
    return loss_type.endswith("vae")


def gradient_penalty(
    critic: Callable[[torch.Tensor], Scores],
    real: torch.Tensor,
    fake: torch.Tensor,
    epsilon: torch.Tensor,
    per: str = "image",
) -> torch.Tensor:
    """Return mean (|d critic / d x| - 1)^2 between real and fake (n, 3, H, W). Gulrajani et al. 2017, eq. 3.

    `epsilon` (n,) in [0, 1] places x between the two. `per` "image": one norm and one epsilon each; "batch": one norm
    and epsilon[0] for the whole batch, as published.
    """
    if per not in PENALTY_PER:
        raise InputError(f"penalty_per = {per!r}: expected {' or '.join(PENALTY_PER)}")
    mix = (epsilon[:1] if per == "batch" else epsilon).reshape(-1, 1, 1, 1)
    x = mix * real + (1 - mix) * fake
    if getattr(critic, "norm", "") == "none":
        slope = critic.slope(x)  # (n, 3, H, W)
    else:
        x.requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    norm = slope.norm() if per == "batch" else slope.flatten(1).norm(dim=1)
    return (norm - 1).square().mean()


def critic_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: GANLoss,
    real: torch.Tensor,
    fake: torch.Tensor,
    epsilon: torch.Tensor,
    *,
    penalty_weight: float = 10.0,
    penalty_per: str = "image",
    clip: float = 0.01,
    autocast: torch.autocast | nullcontext = nullcontext(),  # noqa: B008 (stateless)
) -> dict[str, torch.Tensor]:
    """Update the critic once, on one fake batch for both loss and penalty; return the parts of its loss.

    `real`, `fake` (n, 3, H, W) in [-1, 1]; no gradient reaches the generator. The penalty is computed in fp32 whatever
    `autocast` says: its second derivative loses too much in bf16.
    """
    critic.requires_grad_(True)
    fake = fake.detach().float()
    with autocast:
        if getattr(critic, "norm", "batch") == "none":  # images do not meet: one pass for both
            on_real, on_fake = critic(torch.cat([real, fake])).float().chunk(2)
        else:
            on_real, on_fake = critic(real).float(), critic(fake).float()
    parts = {"critic": loss.critic(on_real, on_fake)}
    total = parts["critic"]
    if loss.penalty:
        parts["penalty"] = gradient_penalty(critic, real, fake, epsilon, penalty_per)
        total = total + penalty_weight * parts["penalty"]
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    if loss.clip:
        with torch.no_grad():
            for weight in critic.parameters():
                weight.clamp_(-clip, clip)
    return {name: value.detach() for name, value in parts.items()} | {"real_score": on_real.detach().mean()}


def generator_step(
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: GANLoss,
    fake: torch.Tensor,
    *,
    autocast: torch.autocast | nullcontext = nullcontext(),  # noqa: B008 (stateless)
) -> dict[str, torch.Tensor]:
    """Update the generator once through `fake` (n, 3, H, W), which it made; the critic is frozen meanwhile."""
    critic.requires_grad_(False)
    with autocast:
        scores = critic(fake)
    total = loss.generator(scores.float())
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    critic.requires_grad_(True)
    return {"generator": total.detach()}
