"""What a GAN's training takes from the beta-VAE and the cohort, and what its checkpoints say of them."""

from typing import Any

import torch

from common.checkpoint import content_digest, load_checkpoint, resolve_checkpoint
from common.config import GANSettings, settings_dict
from common.errors import InputError, warn
from common.run import FREE_TO_CHANGE
from datasets.cohort import Cohort
from datasets.leaks import trained_by
from models.gan_losses import is_conditional
from models.published import open_published
from sources.profiles import Profiles


def adopt(cfg: GANSettings, profiles: Profiles, config: str) -> None:
    """Change `cfg` to what the VAE says: its split of the donors, and where z is added its dimension."""
    asked = {"split_seed": profiles.split_seed}
    if cfg.condition == "add":
        asked["encoding_dims"] = profiles.vae.latent_dim
    for key, value in asked.items():
        if getattr(cfg, key) != value:
            warn(f"{config}: {key} = {getattr(cfg, key)}, the beta-VAE {profiles.path} has {value}: that is used")
            setattr(cfg, key, value)


def adopt_split(cfg: GANSettings, config: str) -> None:
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


def cohort_digest(cohort: Cohort) -> str:
    """Return a digest of what is trained on: the slides, the pixels and numbers of their tiles, the profiles."""
    pixels = [store.digest for store in cohort.tiles.stores]
    profiles = None if cohort.table is None else [cohort.table.genes, torch.from_numpy(cohort.table.values)]
    return content_digest([cohort.slides["slide"].tolist(), pixels, cohort.tiles.tile_index.tolist(), profiles])


def describe_model(
    cfg: GANSettings, cohort: Cohort, vae: dict[str, Any], epoch: float, images_seen: int
) -> dict[str, Any]:
    """Return what a GAN checkpoint says besides its weights: enough to use them, and to know whose they are."""
    settings = {k: v for k, v in settings_dict(cfg).items() if k not in FREE_TO_CHANGE | {"num_epochs"}}
    return {
        "settings": settings,
        "conditional": is_conditional(cfg.loss_type),
        "vae_digest": vae["digest"],
        "latent": vae["latent"],
        "gene_coverage": vae["coverage"],
        "tissues": sorted(cohort.slides["tissue"].astype(str).unique()),
        "donors": int(cohort.slides["donor"].nunique()),
        "tiles": len(cohort.tiles),
        "img_size": cfg.img_size,
        "mpp": cohort.tiles.mpp,
        "epoch": epoch,
        "images_seen": images_seen,
        "split_seed": cfg.split_seed,
    } | trained_by(cohort.slides["donor"], cohort.slides["slide"], *vae["trained_on"])
