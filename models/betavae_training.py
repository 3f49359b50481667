"""All of a beta-VAE that changes in training, network and optimiser; and its loss on validation donors."""

from typing import Any

import torch
from torch import Tensor

from common.config import BetaVAESettings
from common.run import generator_for, seed_for
from models.betavae import BetaVAE, beta_vae_loss
from models.optimizers import OPTIMIZERS

PARTS = ("total", "reconstruction", "kl")


class BetaVAETraining:
    """A network for `n_genes` with fresh weights by `cfg.seed`, on `device`."""

    def __init__(self, cfg: BetaVAESettings, n_genes: int, device: torch.device) -> None:
        self.cfg, self.device, self.args = cfg, device, network_args(cfg, n_genes)
        torch.manual_seed(seed_for(cfg.seed, "weights"))
        self.model = BetaVAE(**self.args).to(device)
        rates = {"lr": cfg.lr, "weight_decay": cfg.weights_decay}
        self.optimizer = OPTIMIZERS[cfg.optimizer](self.model.parameters(), fused=True, **rates)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def fresh_state(self) -> dict[str, Any]:
        """Return the state that it began with: the weights are drawn again."""
        return BetaVAETraining(self.cfg, self.args["n_genes"], self.device).state()

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


def network_args(cfg: BetaVAESettings, n_genes: int) -> dict[str, Any]:
    """Return the arguments of the settings' BetaVAE."""
    keys = ("encoder_sizes", "decoder_sizes", "latent_dim", "input_dropout", "decoder_output")
    return {"n_genes": n_genes} | {key: getattr(cfg, key) for key in keys}


@torch.no_grad()
def evaluate(model: BetaVAE, x: Tensor, cfg: BetaVAESettings) -> dict[str, float]:
    """Return the loss's parts on `x` (n, genes) z-scores: the training's formula, with the same noise every time."""
    model.eval()
    sums = dict.fromkeys(PARTS, 0.0)
    noise = torch.randn(len(x), cfg.latent_dim, generator=generator_for(cfg.seed, "validation")).to(x.device)
    for rows, e in zip(x.split(cfg.batch_size), noise.split(cfg.batch_size), strict=True):
        losses = beta_vae_loss(rows, *model(rows, e), beta=cfg.beta)
        for name in PARTS:
            sums[name] += losses[name].item() * len(rows) / len(x)
    return sums
