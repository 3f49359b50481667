"""What several benchmarks share: a training step as histopathology_gan.py takes it, on made-up tiles, and a clock."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import GANSettings
from common.run import generator_for
from models.gan_losses import LOSSES, NOTHING_SHOWN, Shown
from models.gan_settings import resolve_gan_settings
from models.gan_steps import critic_step, generator_step
from models.networks import build_critic, build_generator, generator_args
from models.optimizers import OPTIMIZERS
from models.schedules import rate_groups, set_rate


def gan_settings(**values: Any) -> GANSettings:
    """Return the GAN's settings with these values, those left open resolved as the command resolves them."""
    cfg = GANSettings(**values)
    resolve_gan_settings(cfg)
    return cfg


class GANStep:
    """Critic and generator of `cfg` on `device`; calling it takes one step, on one made-up batch of tiles.

    `latent_dim` > 0: with expression, the same made-up profiles (batch, latent_dim) in every step. Step `number` has
    the zero-centred penalties where penalty_every divides it. Networks, losses, optimisers and their rates are those of
    histopathology_gan.py at the beginning; left out is what it does around them: reading tiles, turning (`turns`) and
    augmenting them, jitter and dropout of the expression, more than one critic step, schedules and smaller sides
    (`first_side`), compilation, and the generator's moving average.
    """

    def __init__(self, cfg: GANSettings, device: torch.device, latent_dim: int = 0) -> None:
        self.cfg, self.device, self.loss = cfg, device, LOSSES[cfg.loss_type]
        torch.manual_seed(cfg.seed)
        self.generator = build_generator(generator_args(cfg, latent_dim)).to(device)
        self.critic = build_critic(cfg, latent_dim).to(device)
        betas = (cfg.adam_beta1, cfg.adam_beta2)
        adam = partial(OPTIMIZERS[cfg.optimizer], betas=betas, weight_decay=cfg.weights_decay, fused=True)
        self.adam_g = adam(rate_groups(self.generator, cfg.equalised), lr=cfg.lr_generator)
        self.adam_c = adam(rate_groups(self.critic, cfg.equalised), lr=cfg.lr_critic)
        set_rate(self.adam_g, cfg.lr_generator)
        set_rate(self.adam_c, cfg.lr_critic)
        bf16 = cfg.precision == "bf16"
        self.autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
        keys = ("penalty_weight", "penalty_per", "mismatched_weight", "clip", "gamma")
        self.options = {key: getattr(cfg, key) for key in keys} | {"autocast": self.autocast}
        n = cfg.batch_size
        self.real = torch.rand(n, 3, cfg.img_size, cfg.img_size, device=device) * 2 - 1
        self.shown = NOTHING_SHOWN
        if latent_dim:
            keep = torch.ones(n, dtype=torch.bool, device=device)
            self.shown = Shown(torch.randn(n, latent_dim, device=device), keep, torch.arange(n, device=device))

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """Take step `number`; return the parts of its losses."""
        cfg, n = self.cfg, self.cfg.batch_size
        noise = self.generator.draw(n, generator_for(cfg.seed, "noise", number), self.device)
        epsilon = torch.rand(n, generator=generator_for(cfg.seed, "epsilon", number)).to(self.device)
        with self.autocast:
            fake = self.generator(noise, self.shown.c, self.shown.keep).float()
        options = self.options | {"penalise": cfg.penalty_every if number % cfg.penalty_every == 0 else 0}
        if cfg.penalty_form == "difference" and options["penalise"]:
            options["signs"] = torch.randint(2, (2, *self.real.shape), device=self.device) * 2.0 - 1.0
        losses = critic_step(self.critic, self.adam_c, self.loss, self.real, fake, epsilon, self.shown, **options)
        return losses | generator_step(
            self.critic, self.adam_g, self.loss, fake, self.shown, self.real, autocast=self.autocast
        )


def timed(
    action: Callable[[], Any], device: torch.device | None = None, least: int = 3, enough: float = 1.0
) -> tuple[float, float, int]:
    """Return (seconds by the clock, of the processor, rounds): medians of `least` rounds, of more until `enough` s.

    A GPU is waited for at the end of each round. Nothing is warmed up: that is the caller's.
    """
    rounds: list[tuple[float, float]] = []
    while len(rounds) < least or (sum(wall for wall, _ in rounds) < enough and len(rounds) < 50):
        wall, processor = time.perf_counter(), time.process_time()
        action()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        rounds.append((time.perf_counter() - wall, time.process_time() - processor))
    return median(wall for wall, _ in rounds), median(processor for _, processor in rounds), len(rounds)
