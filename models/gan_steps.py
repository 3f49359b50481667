"""The two updates of a GAN's training step: the critic's, with its penalty, and the generator's."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from common.distributed import current
from common.joint_sums import sum_gradients
from models.gan_losses import NOTHING_SHOWN, GANLoss, Shown, between, gradient_penalty, mismatched_pairs, zero_penalty
from models.passes import pieces


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
