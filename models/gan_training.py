"""All of a GAN that changes in training: generator, critic, the generator's moving average, and two optimisers."""

from copy import deepcopy
from typing import Any

import torch

from common.config import GANSettings
from common.run import seed_for
from models.networks import align_moments, build_critic, build_generator, generator_args
from models.optimizers import OPTIMIZERS
from models.schedules import eased, rate_groups, set_rate


class GANTraining:
    """Networks with fresh weights by `cfg.seed`, on `device`. `latent_dim`: of the expression, 0 without."""

    def __init__(self, cfg: GANSettings, latent_dim: int, device: torch.device) -> None:
        self.cfg, self.device, self.args = cfg, device, generator_args(cfg, latent_dim)
        self.per_step = cfg.batch_size * cfg.critic_steps  # images that a step shows
        self._latent_dim = latent_dim
        torch.manual_seed(seed_for(cfg.seed, "weights"))
        self.generator = build_generator(self.args).to(device)
        self.critic = build_critic(cfg, latent_dim).to(device)
        self.average = deepcopy(self.generator).requires_grad_(False)
        options: dict[str, Any] = {"betas": (cfg.adam_beta1, cfg.adam_beta2), "weight_decay": cfg.weights_decay}
        adam = OPTIMIZERS[cfg.optimizer]
        groups = [rate_groups(network, cfg.equalised) for network in (self.generator, self.critic)]
        self.optimizer_g = adam(groups[0], lr=cfg.lr_generator, fused=True, **options)
        self.optimizer_c = adam(groups[1], lr=cfg.lr_critic, fused=True, **options)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {name: getattr(self, name).state_dict() for name in self._parts}

    def fresh_state(self) -> dict[str, Any]:
        """Return the state that it began with: the weights are drawn again."""
        return GANTraining(self.cfg, self._latent_dim, self.device).state()

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        for name in self._parts:
            getattr(self, name).load_state_dict(saved[name])
        align_moments(self.optimizer_g)
        align_moments(self.optimizer_c)

    def set_rates(self, images: int) -> None:
        """Set the learning rates of after so many images."""
        cfg = self.cfg
        for optimizer, rate in ((self.optimizer_g, cfg.lr_generator), (self.optimizer_c, cfg.lr_critic)):
            set_rate(optimizer, eased(rate, rate * cfg.lr_final, images, cfg.schedule_images))

    _parts = ("generator", "critic", "average", "optimizer_g", "optimizer_c")
