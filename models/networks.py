"""Generators and critics by name: built from settings for training, from a checkpoint for use."""

from typing import Any

import torch

from common.config import GANSettings, settings_dict
from models.conditioning import ConditionedCritic, ConditionedGenerator, InputRule
from models.dcgan import DCGANDiscriminator, DCGANGenerator
from models.residual import ResidualCritic, ResidualGenerator

GAN_TYPES = ("dcgan", "residual")


def generator_args(cfg: GANSettings, latent_dim: int = 0) -> dict[str, Any]:
    """Return all that `build_generator` needs; numbers and strings, kept in the checkpoint. `latent_dim` 0: plain."""
    keys = ("gan_type", "encoding_dims", "step_channels", "depth", "cond_dim")
    keys += ("noise", "standardise", "condition_share", "condition", "first_side", "enlarge_taps")
    return {"out_size": cfg.img_size, "latent_dim": latent_dim} | {k: settings_dict(cfg)[k] for k in keys}


def build_generator(args: dict[str, Any]) -> ConditionedGenerator:
    """Return the generator of `generator_args`, with fresh weights. KeyError where one is missing."""
    rule, dims = InputRule.of(args), args["encoding_dims"]
    into = dims + (args["cond_dim"] if args["latent_dim"] and rule.how == "concat" else 0)
    if args["gan_type"] == "residual":
        shape = args["out_size"], args["step_channels"], args["depth"], args["first_side"]
        network = ResidualGenerator(into, *shape, args.get("enlarge_taps") or 4)  # older ones do not say it
    else:
        network = DCGANGenerator(into, args["out_size"], args["step_channels"])
    return ConditionedGenerator(network, rule, dims, args["latent_dim"], args["cond_dim"])


def build_critic(cfg: GANSettings, latent_dim: int = 0) -> ConditionedCritic:
    """Return the critic of the settings; it sees the expression where they say critic_condition = projection."""
    if cfg.gan_type == "residual":
        network = ResidualCritic(cfg.img_size, cfg.step_channels, cfg.depth, cfg.first_side, cfg.enlarge_taps)
    else:
        network = DCGANDiscriminator(cfg.img_size, cfg.step_channels, cfg.critic_norm, cfg.critic_output)
    return ConditionedCritic(network, latent_dim if cfg.critic_condition == "projection" else 0, cfg.cond_dim)


def align_moments(optimizer: torch.optim.Optimizer) -> None:
    """Lay what the optimiser remembers of each weight out in memory as the weight, after a restore.

    A fused optimiser reads both by position; in files of before networks were channels last they differ.
    """
    for weight, memory in optimizer.state.items():
        for key, value in memory.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                memory[key] = torch.empty_like(weight).copy_(value)
