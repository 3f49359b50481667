"""What the settings of a GAN may be, and what stands for those left open."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from common.config import BLIND, PRECISIONS, SEEING, GANSettings, settings_dict
from common.errors import InputError
from models.compiling import MODES
from models.conditioning import CONDITIONS, CRITIC_CONDITIONS, NOISES, STANDARDISE, InputRule
from models.dcgan import CRITIC_NORMS, CRITIC_OUTPUTS
from models.gan_losses import LOSSES, PENALTY_FORMS, PENALTY_PER, is_conditional
from models.networks import GAN_TYPES
from models.optimizers import OPTIMIZERS
from models.residual import TAPS, grown_sides

CACHES = ("auto", "gpu", "ram", "none")


def resolve_gan_settings(cfg: GANSettings) -> None:
    """Replace each None in `cfg` by what loss and architecture ask for; a plain GAN has nothing of expression."""
    sees = cfg.loss_type in LOSSES and LOSSES[cfg.loss_type].sees
    if cfg.critic_condition == "none" and cfg.mismatched_weight is None:
        cfg.mismatched_weight = 0.0  # it is the critic's
    if cfg.condition is None:
        cfg.condition = "concat" if sees else "add"
    for key, value in (SEEING if sees else BLIND).items():
        if getattr(cfg, key) is None or not is_conditional(cfg.loss_type):
            setattr(cfg, key, value)


def for_rehearsal(cfg: GANSettings) -> GANSettings:
    """Return settings under which a first step does all that any later one does, at its full size."""
    few = {"log_interval": 1, "image_dir": "", "eval_every": min(cfg.eval_every, 1), "eval_tiles": 2}
    full = {"penalty_every": 1, "grow_images": 0, "augment_images": 0}
    return replace(cfg, num_epochs=max(cfg.num_epochs, 2), **few, **full)


def free_settings(cfg: GANSettings) -> set[str]:
    """Return settings that may differ on resume, as they change nothing there: passes, without batch norm; a filter."""
    return {"micro_batch"} if cfg.gan_type == "residual" else {"enlarge_taps"}


def least_rows(cfg: GANSettings) -> int:
    """Return the fewest rows of a batch that may pass through the networks at a time."""
    return cfg.batch_size if cfg.penalty_per == "batch" else 1


def older_settings(cfg: GANSettings) -> dict[str, Any]:
    """Return what was so in a run of this loss whose older config.json does not say it."""
    resolve_gan_settings(before := GANSettings(loss_type=cfg.loss_type))
    if cfg.gan_type == "residual":
        before.enlarge_taps = 4
    return settings_dict(before)


def check_gan_settings(cfg: GANSettings, config: str) -> None:
    """InputError for a setting that training would only trip over later."""
    known = {
        "gan_type": GAN_TYPES,
        "condition": CONDITIONS,
        "critic_condition": CRITIC_CONDITIONS,
        "loss_type": LOSSES,
        "optimizer": OPTIMIZERS,
        "shuffle": ("patients", "slides"),
        "precision": PRECISIONS,
        "cache": CACHES,
        "compile": ("", *MODES),
        "critic_norm": CRITIC_NORMS,
        "critic_output": CRITIC_OUTPUTS,
        "penalty_per": PENALTY_PER,
        "penalty_form": PENALTY_FORMS,
        "standardise": STANDARDISE,
        "noise": NOISES,
        "enlarge_taps": TAPS,
    }
    for key, values in known.items():
        if getattr(cfg, key) not in values:
            raise InputError(f"{config}: {key} = {getattr(cfg, key)!r}: expected {', '.join(map(str, values))}")
    counts = ("num_epochs", "batch_size", "critic_steps", "step_channels", "encoding_dims", "log_interval")
    counts += ("read_timeout", "max_patch_per_wsi", "ema_images", "num_grid", "depth", "cond_dim", "penalty_every")
    schedules = ("augment_images", "schedule_images", "grow_images", "micro_batch")
    weights = ("penalty_weight", "gamma", "mismatched_weight")
    expected: dict[str, tuple[Sequence[str], Callable[[float], bool]]] = {
        "1 or more": (counts, lambda x: x >= 1),
        "0 or more": (
            (
                *weights,
                "n_workers",
                "max_steps",
                "save_every",
                "weights_decay",
                "cond_jitter",
                "eval_every",
                *schedules,
            ),
            lambda x: 0 <= x < math.inf,
        ),
        "more than 0": (("lr_generator", "lr_critic", "clip", "lr_final"), lambda x: 0 < x < math.inf),
        "0 or more, under 1": (("adam_beta1", "adam_beta2", "cond_dropout", "augment"), lambda x: 0 <= x < 1),
        "0 (noise only) to 1 (expression only)": (("condition_share",), lambda x: 0 <= x <= 1),
    }
    for words, (keys, good) in expected.items():
        for key in keys:
            if not good(getattr(cfg, key)):
                raise InputError(f"{config}: {key} = {getattr(cfg, key)}: expected {words}")
    if cfg.eval_tiles < 2:
        raise InputError(f"{config}: eval_tiles = {cfg.eval_tiles}: expected 2 or more")
    if cfg.gamma_final is not None and not 0 <= cfg.gamma_final < math.inf:
        raise InputError(f"{config}: gamma_final = {cfg.gamma_final}: expected 0 or more")
    if cfg.img_size < 16 or cfg.img_size & (cfg.img_size - 1):
        raise InputError(f"{config}: img_size = {cfg.img_size}: expected a power of two, 16 or more")
    for key in ("first_side", "equalised"):
        if getattr(cfg, key) and cfg.gan_type != "residual":
            raise InputError(f"{config}: {key} = {getattr(cfg, key)} needs gan_type = residual")
    if cfg.first_side:
        try:
            grown_sides(cfg.first_side, cfg.img_size)
        except InputError as error:
            raise InputError(f"{config}: {error}") from None
    if bool(cfg.first_side) != bool(cfg.grow_images):
        raise InputError(f"{config}: first_side and grow_images go together: from which side, and over how many images")
    if not cfg.schedule_images and (cfg.lr_final != 1 or cfg.gamma_final is not None):
        raise InputError(f"{config}: lr_final and gamma_final need schedule_images, the images until they are reached")
    if cfg.standardise == "batch" and cfg.cond_dropout:
        raise InputError(f"{config}: cond_dropout = {cfg.cond_dropout} needs standardise = train: batch has no null")
    if cfg.micro_batch and cfg.penalty_per == "batch":
        raise InputError(f"{config}: micro_batch = {cfg.micro_batch}: penalty_per = batch needs it whole")
    InputRule.of(settings_dict(cfg))
    if cfg.mismatched_weight and cfg.critic_condition == "none":
        raise InputError(f"{config}: mismatched_weight = {cfg.mismatched_weight} needs critic_condition = projection")
