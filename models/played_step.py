"""A training step played through, at its full size, with inputs that say nothing: for the memory that it takes.

On torch's "meta" device it is counted (models/memory.py), on the training's own device it is tried (models/passes.py).
It asks no other rank, and changes no weight.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from common.config import BetaVAESettings, GANSettings
from common.run import generator_for
from models.augment import augmented
from models.betavae import BetaVAE, beta_vae_loss
from models.conditioning import ConditionedCritic, ConditionedGenerator
from models.gan_losses import LOSSES, NOTHING_SHOWN, Shown
from models.gan_steps import critic_step, generator_step

Play = Callable[[list[slice]], None]  # given a rank's rows of a batch, those of each pass


class Still(torch.optim.SGD):
    """An optimiser that leaves its weights as they are, whatever the gradients: they may be NaN here."""

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Do nothing."""


def gan_step(
    cfg: GANSettings,
    generator: ConditionedGenerator,
    critic: ConditionedCritic,
    latent_dim: int,
    device: torch.device,
    autocast: torch.autocast | nullcontext = nullcontext(),  # noqa: B008 (stateless)
) -> Play:
    """Return a step of a GAN that does all that any step does; `latent_dim` 0: without expression.

    Networks take as many passes as they have been told to.
    """
    loss, optimizers = LOSSES[cfg.loss_type], [Still(part.parameters()) for part in (generator, critic)]
    keys = ("penalty_weight", "penalty_per", "gamma", "mismatched_weight")
    options: dict[str, Any] = {key: getattr(cfg, key) for key in keys} | {"penalise": 1, "clip": math.inf}

    def step(parts: list[slice]) -> None:
        rows = slice(parts[0].start, parts[-1].stop)
        n, whole, shown = rows.stop - rows.start, cfg.batch_size, NOTHING_SHOWN
        with device:
            if latent_dim:
                keep = torch.ones(whole, dtype=torch.bool) if cfg.cond_dropout else None
                shown = Shown(torch.zeros(whole, latent_dim), keep, torch.zeros(whole, dtype=torch.int64))
                shown = shown if n == whole else shown.part(rows)
            real, epsilon = torch.zeros(n, 3, cfg.img_size, cfg.img_size), torch.zeros(n)
            noise = torch.zeros(n, generator.noise_dims)
            signs = torch.zeros(2, *real.shape) if cfg.penalty_form == "difference" else None
        with autocast:
            fake = generator(noise, shown.c, shown.keep).float()
        if cfg.augment:
            real, fake = (augmented(x, cfg.augment, generator_for(0, "memory")) for x in (real, fake))
        both = {"autocast": autocast}
        critic_step(critic, optimizers[1], loss, real, fake, epsilon, shown, signs=signs, **options, **both)
        generator_step(critic, optimizers[0], loss, fake, shown, real, **both)

    return step


def vae_step(
    cfg: BetaVAESettings,
    model: BetaVAE,
    batch: int,
    device: torch.device,
    autocast: torch.autocast | nullcontext = nullcontext(),  # noqa: B008 (stateless)
) -> Play:
    """Return a step of a beta-VAE with a batch of so many profiles."""

    def step(parts: list[slice]) -> None:
        noise, kept = model.draw(batch, device)
        model.zero_grad(set_to_none=True)
        for part in parts:
            n = max(part.stop - part.start, 2)  # batch norm, which asks no other rank here, takes no single row
            x = torch.zeros_like(kept[:n])
            with autocast:
                outputs = model(x, noise[:n], kept[:n])
            beta_vae_loss(x, *outputs, beta=cfg.beta)["total"].backward()

    return step


@contextmanager
def unchanged(*networks: nn.Module) -> Iterator[None]:
    """Undo at the end what steps leave beside weights: batch norm's statistics, gradients, random numbers drawn."""
    buffers = [(value, value.clone()) for network in networks for value in network.buffers()]
    gpus = {weight.device for network in networks for weight in network.parameters() if weight.is_cuda}
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        for value, before in buffers:
            value.copy_(before)
        for network in networks:
            network.zero_grad(set_to_none=True)
