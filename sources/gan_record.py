"""What a GAN's checkpoints and settings say of the cohort and the beta-VAE that it was trained with."""

from typing import Any

import torch

from common.checkpoint import content_digest
from common.config import settings_dict
from common.run import FREE_TO_CHANGE
from datasets.cohort import Cohort
from datasets.leaks import trained_by
from models.gan_losses import is_conditional
from models.gan_training import GANTraining


def cohort_digest(cohort: Cohort) -> str:
    """Return a digest of what is trained on: the slides, the pixels and numbers of their tiles, the profiles."""
    pixels = [store.digest for store in cohort.tiles.stores]
    profiles = None if cohort.table is None else [cohort.table.genes, torch.from_numpy(cohort.table.values)]
    return content_digest([cohort.slides["slide"].tolist(), pixels, cohort.tiles.tile_index.tolist(), profiles])


def describe_model(
    gan: GANTraining, cohort: Cohort, vae: dict[str, Any], epoch_steps: int, step: int
) -> dict[str, Any]:
    """Return what a GAN checkpoint says besides its weights: enough to use them, and to know whose they are.

    `vae`: as Expression has it; `epoch_steps`: steps in an epoch.
    """
    cfg = gan.cfg
    settings = {k: v for k, v in settings_dict(cfg).items() if k not in FREE_TO_CHANGE | {"num_epochs"}}
    about = {
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
        "epoch": step / epoch_steps,
        "images_seen": step * gan.per_step,
        "split_seed": cfg.split_seed,
    }
    trained = trained_by(cohort.slides["donor"], cohort.slides["slide"], *vae["trained_on"])
    return about | trained | {"generator_args": gan.args}
