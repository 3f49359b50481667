"""What the settings of a beta-VAE may be."""

from common.config import PRECISIONS, BetaVAESettings
from common.errors import InputError
from models.expression_scaler import MISSING, TRANSFORMS
from models.optimizers import OPTIMIZERS

CHOICES = {
    "optimizer": tuple(OPTIMIZERS),
    "transform": tuple(TRANSFORMS),
    "missing_genes": MISSING,
    "lr_schedule": ("constant", "warmup_cosine"),
    "best_by": ("total", "reconstruction"),
    "precision": PRECISIONS,
}


def check_vae_settings(cfg: BetaVAESettings, path: str) -> None:
    """Refuse settings that no step could run with. InputError names the file and the key."""
    for key, known in CHOICES.items():
        if getattr(cfg, key) not in known:
            raise InputError(f"{path}: {key} {getattr(cfg, key)!r}: expected one of {', '.join(known)}")
    for key in ("batch_size", "latent_dim", "num_epochs", "warmup_batches", "cosine_batches", "lr"):
        if getattr(cfg, key) <= (1 if key == "batch_size" else 0):
            raise InputError(f"{path}: {key} {getattr(cfg, key)}: a larger number was expected")
    if cfg.save_every < 0:
        raise InputError(f"{path}: save_every {cfg.save_every}: seconds, 0 or more, were expected")
    if cfg.micro_batch and cfg.micro_batch < 2:  # batch norm knows nothing of a single row
        raise InputError(f"{path}: micro_batch {cfg.micro_batch}: 0, or 2 or more, were expected")
    if not 0 <= cfg.input_dropout < 1:
        raise InputError(f"{path}: input_dropout {cfg.input_dropout}: a share from 0 to below 1 was expected")
    for key in ("encoder_sizes", "decoder_sizes"):
        if not getattr(cfg, key) or min(getattr(cfg, key)) < 1:
            raise InputError(f"{path}: {key} {getattr(cfg, key)}: at least one size of 1 or more was expected")
