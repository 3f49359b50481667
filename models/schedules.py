"""What changes with the images or batches shown: settings, learning rates, and the side of the tiles."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from common.config import BetaVAESettings, GANSettings


def eased(start: float, end: float, images: int, over: int) -> float:
    """Return a value that goes from `start` at 0 images to `end` at `over`, and stays, along half a cosine.

    `over` 0: `end` from the beginning. The shape of R3GAN's schedules (Huang et al. 2024, appendix).
    """
    share = min(images / over, 1.0) if over else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def side_at(images: int, first: int, full: int, over: int) -> int:
    """Return the side of the tiles (pixels) that are trained after `images`: it doubles from `first` to `full`.

    Each side has an equal part of `over` images; from there on it is `full`. `first` 0: `full` from the beginning.
    """
    if not first or images >= over:
        return full
    doublings = (full // first).bit_length() - 1
    return first * 2 ** (images * doublings // over)


def sides_of(cfg: GANSettings, images: Iterable[int]) -> list[int]:
    """Return all sides that a training has after these numbers of images, the smallest first."""
    return sorted({side_at(n, cfg.first_side, cfg.img_size, cfg.grow_images) for n in images})


def rate_groups(model: nn.Module, equalised: bool) -> list[dict[str, Any]]:
    """Return a model's parameters in groups for an optimiser; `share`: of the learning rate, 1 unless `equalised`.

    Then a layer's weights have 1 / sqrt(inputs to one output), about the spread that they begin with: Adam's steps,
    which do not know a weight's size, are so the same part of each (Karras et al. 2018, section 4.1, there by scaling
    the weights). With one rate for all a residual critic's wide layers were shaken until it told nothing.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        wide = equalised and isinstance(module, nn.Conv2d | nn.Linear)
        for name, weight in module.named_parameters(recurse=False):
            share = weight[0].numel() ** -0.5 if wide and name == "weight" else 1.0
            groups.setdefault(share, []).append(weight)
    return [{"params": weights, "share": share} for share, weights in sorted(groups.items())]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of an optimiser made of rate_groups; a file of before them has no shares, and one group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def learning_rate(step: int, cfg: BetaVAESettings) -> float:
    """Return the rate of step 0, 1, 2...: constant, or linear warm-up and then a cosine, both counted in batches.

    The published cosine was never stopped: after cosine_batches it rises again (betaVAE.py:234-235 there).
    """
    if cfg.lr_schedule == "constant":
        return cfg.lr
    if step < cfg.warmup_batches:
        return cfg.lr * step / cfg.warmup_batches
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - cfg.warmup_batches) / cfg.cosine_batches))
