"""The generator's moving average, and its batch-norm statistics: what is kept for sampling."""

from collections.abc import Iterable

import torch
from torch import nn

from common.run import generator_for
from models.conditioning import ConditionedGenerator

CALIBRATION_BATCHES, CALIBRATION_SIZE = 8, 32  # inputs over which batch norm is averaged; ours
RAMP = 0.1  # early in training the half-life is this share of the images shown, so that the first weights are forgotten


def average_decay(batch_size: int, half_life: float, images_seen: int) -> float:
    """Return the factor that the average keeps over one step of `batch_size` images.

    Half-life in images, as Karras et al. 2018, section 5 (there 0.999 per step of 8 to 64), ramped up from the start.
    """
    return 0.5 ** (batch_size / max(min(half_life, RAMP * images_seen), 1e-8))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `model`; buffers are left to `calibrate_batch_norm`."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, inputs: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    """Set the batch-norm statistics of `model` to their mean over `inputs`; averaged weights have none of their own.

    `inputs`: (noise (n, noise_dims), expression (n, z) or None). Depends on the weights and inputs alone, not on
    earlier statistics. Leaves `model` in eval mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        model.eval()
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
    model.train()
    device = next(model.parameters()).device
    for noise, c in inputs:
        model(noise.to(device), c if c is None else c.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def calibration_inputs(
    model: ConditionedGenerator, seed: int, conditions: torch.Tensor | None = None
) -> Iterable[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield (noise (32, noise_dims), expression (32, z) or None) 8 times: noise by `seed`, profiles of `conditions`."""
    for i in range(CALIBRATION_BATCHES):
        source = generator_for(seed, "calibration", i)
        noise = model.draw(CALIBRATION_SIZE, source)
        if conditions is None:
            yield noise, None
        else:
            yield noise, conditions[torch.randint(len(conditions), (CALIBRATION_SIZE,), generator=source)].cpu()
