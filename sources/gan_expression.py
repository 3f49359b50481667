"""The expression that a GAN is trained with, and the beta-VAE that encodes it, all of it before the first step."""

from dataclasses import dataclass, field
from typing import Any

import torch

from common.checkpoint import load_checkpoint, resolve_checkpoint
from common.config import GANSettings, settings_dict
from common.errors import InputError, warn
from datasets.cohort import Cohort
from datasets.expression import read_cohort_tables
from datasets.leaks import HELD_OUT
from models.conditioning import InputRule
from models.gan_losses import is_conditional
from models.published import open_published
from sources.profiles import Profiles
from sources.vae import Fit

GRID_PROFILES = 8  # held-out profiles in an RNA-GAN's grid


def open_profiles(cfg: GANSettings, config: str, device: torch.device) -> Profiles | None:
    """Return the profiles of an RNA-GAN's tables, None in a run without expression; change `cfg` to what the VAE says.

    InputError as Profiles raises it, or where a held-out donor has trained the VAE: such cannot be held out from the
    GAN. `config`: the settings' file, for the warnings.
    """
    if not is_conditional(cfg.loss_type):
        _adopt_split(cfg, config)
        return None
    rule, table = InputRule.of(settings_dict(cfg)), read_cohort_tables(cfg)
    profiles = Profiles(cfg.vae_checkpoint, table, device, rule, Fit.of(cfg))
    _adopt(cfg, profiles, config)
    for split in HELD_OUT:
        profiles.refuse_trained(split)
    return profiles


@dataclass(frozen=True)
class Expression:
    """What a GAN is given of expression: nothing, in a run without.

    conditions (rows of the cohort, z): what each profile brings to the generator; held_out (GRID_PROFILES, z): those of
    the grid; vae: what a checkpoint says of the beta-VAE.
    """

    conditions: torch.Tensor | None = None
    held_out: torch.Tensor | None = None
    vae: dict[str, Any] = field(
        default_factory=lambda: {"digest": None, "latent": None, "coverage": None, "trained_on": []}
    )

    @classmethod
    def of(cls, profiles: Profiles | None, cohort: Cohort) -> "Expression":
        """Return that of the cohort's rows, and of validation donors for the grid."""
        if profiles is None:
            return cls()
        conditions = profiles.conditions([str(name) for name in cohort.table.obs.index])
        held_out = profiles.conditions(profiles.held_out("val", GRID_PROFILES))
        vae = {"digest": profiles.vae_digest, "latent": {"mean": profiles.mean, "std": profiles.std}}
        vae |= {"coverage": profiles.coverage, "trained_on": profiles.trained_on}
        return cls(conditions, held_out, vae)

    @property
    def latent_dim(self) -> int:
        """z; 0 without expression."""
        return 0 if self.conditions is None else self.conditions.shape[1]


def _adopt(cfg: GANSettings, profiles: Profiles, config: str) -> None:
    """Change `cfg` to what the VAE says: its split of the donors, and where z is added its dimension."""
    asked = {"split_seed": profiles.split_seed}
    if cfg.condition == "add":
        asked["encoding_dims"] = profiles.vae.latent_dim
    for key, value in asked.items():
        if getattr(cfg, key) != value:
            warn(f"{config}: {key} = {getattr(cfg, key)}, the beta-VAE {profiles.path} has {value}: that is used")
            setattr(cfg, key, value)


def _adopt_split(cfg: GANSettings, config: str) -> None:
    """Change `cfg.split_seed` to that of the VAE it names, if that is there: a plain GAN's held-out donors are its."""
    try:
        path = resolve_checkpoint(cfg.vae_checkpoint)
    except InputError:
        return  # a plain GAN needs no VAE
    if open_published(path):
        return  # and a published one says nothing of donors
    seed = load_checkpoint(path, "betavae")[0]["split_seed"]
    if cfg.split_seed != seed:
        warn(f"{config}: split_seed = {cfg.split_seed}, the beta-VAE {path} has {seed}: that is used")
        cfg.split_seed = seed
