"""What a training step of a GAN draws beside its tiles: for the whole batch, from (seed, step, turn), whoever asks."""

import torch

from common.config import GANSettings
from common.run import generator_for
from models.augment import augmented
from models.conditioning import ConditionedGenerator


class StepDraws:
    """Draws for a batch of `cfg.batch_size` and returns its `rows`, one rank's share."""

    def __init__(self, cfg: GANSettings, rows: slice, device: torch.device) -> None:
        self.cfg, self.rows, self.device = cfg, rows, device

    def noise(self, generator: ConditionedGenerator, step: int, turn: int) -> torch.Tensor:
        """Return the generator's noise (n, noise_dims)."""
        return generator.draw(self.cfg.batch_size, self._source("noise", step, turn), self.device)[self.rows]

    def epsilon(self, step: int, turn: int) -> torch.Tensor:
        """Return epsilon (n,) of the gradient penalty in 0 .. 1; with penalty_per = batch all are the first."""
        epsilon = torch.rand(self.cfg.batch_size, generator=self._source("epsilon", step, turn))
        epsilon = epsilon[:1].expand(len(epsilon)) if self.cfg.penalty_per == "batch" else epsilon
        return epsilon[self.rows].to(self.device)

    def signs(self, images: torch.Tensor, step: int, turn: int) -> torch.Tensor:
        """Return -1 and 1 at random, (2, *images.shape): for real and for generated tiles."""
        whole = (2, self.cfg.batch_size, *images.shape[1:])
        signs = torch.randint(2, whole, generator=self._source("signs", step, turn))[:, self.rows]
        return signs.to(self.device) * 2.0 - 1.0

    def augmented(self, images: torch.Tensor, strength: float, which: str, step: int, turn: int) -> torch.Tensor:
        """Return `which` (real, fake) images (n, 3, s, s), augmented; as they are where `strength` is 0."""
        if not strength:
            return images
        source = self._source(f"augment {which}", step, turn)
        return augmented(images, strength, source, self.cfg.batch_size, self.rows)

    def _source(self, what: str, step: int, turn: int) -> torch.Generator:
        return generator_for(self.cfg.seed, what, step, turn)
