"""Settings: a JSON file read into a dataclass; a flag that is given wins; an unknown key stops the run.

The same file serves several commands (fid.py reads the GAN's), so a key of another stage is accepted and left alone.
Configs of the published code work unchanged: each of its keys is a field here or in UNUSED_KEYS.
Paths are relative to the working directory.
"""

import argparse
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError, did_you_mean, shorten, warn
from common.files import read_json

# Keys of the published configs that nothing here reads, and why.
UNUSED_KEYS = {
    "quick": "runs on a few samples are made with --max_steps",
    "bag_size": "tiles are drawn per patient, not in bags",
    "summary_path": "the log is log.jsonl in the run folder (and wandb with --log 1)",
}

PRECISIONS = ("fp32", "bf16")

# How a critic that sees the expression is trained, where the config does not say.
SEEING = {"critic_condition": "projection", "mismatched_weight": 1.0, "cond_jitter": 0.1, "cond_dropout": 0.1}
BLIND = {"critic_condition": "none", "mismatched_weight": 0.0, "cond_jitter": 0.0, "cond_dropout": 0.0}

T = TypeVar("T", bound="DataSettings")


@dataclass
class DataSettings:
    """What every stage needs to find its data. `seed` never moves a donor between splits; `split_seed` does."""

    path_csv: list[str] = field(default_factory=list)  # expression tables (.csv or .h5ad), one per tissue
    patch_data_path: list[str] = field(default_factory=list)  # tile folders, in the order of path_csv
    tissues: list[str] = field(default_factory=list)  # one name per table; empty: column `tissue`, else the file stem
    phenotypes: str = ""  # subject phenotypes (SUBJID, SEX), for betaVAE_interpolation.py --type sex
    img_size: int = 256  # pixels; tiles are area-resized to it
    max_patch_per_wsi: int = 600  # tiles used per slide; paper, STAR Methods
    min_tissue: float = 0.0  # of the tiles that were cut, those with this share of tissue or more are used
    min_sharpness: float = 0.0  # likewise, by the sharpness that prepare_data.py tiles measured
    max_pen: float = 1.0  # likewise, with at most this share of pixels in a pen's colour
    rna_features: int = 0  # expected number of genes; 0: whatever the tables hold
    min_gene_coverage: float = 0.8  # refuse a table with fewer of the expected genes than this share
    missing_genes: str = "mean"  # mean: 0 after scaling; zero: 0 before scaling (published)
    fit_scaler: list[str] = field(default_factory=list)  # tables that give a published beta-VAE genes and scaler
    split_seed: int = 99
    seed: int = 99
    device: str = "0"  # a GPU's index (falls back to the CPU with a warning), "cuda" (insists) or "cpu"
    n_workers: int = 0
    read_timeout: int = 300  # seconds after which a tile that cannot be read is tried once more, and then given up
    flag: str = ""  # the run's name in wandb (--log 1); empty: its folder's
    save_dir: str = ""  # the run folder
    num_epochs: int = 1
    max_steps: int = 0  # stop after so many steps; 0: no such limit
    batch_size: int = 8
    log_interval: int = 100  # steps
    save_every: int = 600  # seconds between checkpoints inside an epoch; 0: at the end of each epoch only
    micro_batch: int = 0  # rows of a batch that pass through the networks at a time; 0: all
    optimizer: str = "Adam"
    weights_decay: float = 0.0


@dataclass
class BetaVAESettings(DataSettings):
    """The beta-VAE of expression. Defaults: paper, STAR Methods, corrected as in the README's table."""

    encoder_sizes: list[int] = field(default_factory=lambda: [6000, 4000, 2048])
    decoder_sizes: list[int] = field(default_factory=lambda: [4000, 6000])
    latent_dim: int = 2048
    input_dropout: float = 0.5
    transform: str = "log1p"  # log1p of TPM; ln_nonzero: ln(x), zeros left at 0 (published, not monotone)
    decoder_output: str = "linear"  # tanh: published, cannot reach beyond 1
    beta: float = 5e-4
    lr: float = 5e-5
    lr_schedule: str = "constant"  # warmup_cosine: published, both counted in batches
    warmup_batches: int = 1000
    cosine_batches: int = 500
    batch_size: int = 128
    num_epochs: int = 500
    best_by: str = "total"  # total | reconstruction
    precision: str = "fp32"  # fp32 | bf16 (autocast; the loss stays fp32)


@dataclass
class GANSettings(DataSettings):
    """The GAN and RNA-GAN. A run is conditional exactly when `loss_type` ends in `vae`."""

    gan_type: str = "dcgan"
    loss_type: str = "wgan"
    vae_checkpoint: str = "checkpoints/betavae_tissues.pt"
    image_dir: str = ""  # sample grids; empty: <save_dir>/samples
    encoding_dims: int = 2048  # length of the noise; condition add: the VAE's latent dimension
    step_channels: int = 64  # channels of the widest-resolution layer; torchgan's DCGANGenerator
    depth: int = 1  # residual: blocks per size
    critic_norm: str = "none"  # none | batch (published; a penalty is not per image under it)
    critic_output: str = "linear"  # linear | leaky (published: a LeakyReLU on the score itself, torchgan's default)
    standardise: str = "train"  # latent standardised with stored training statistics; batch: published, cancels z
    noise: str = "normal"  # normal: N(0, I); uniform: U(-0.3, 0.3) (published)
    condition: str | None = None  # add | concat; None: add for wganvae, as published, concat for the others
    condition_share: float = 0.5  # add: a in input = sqrt(1 - a^2) noise + a c
    cond_dim: int = 128  # concat: the expression as the generator takes it; projection: as the critic compares it
    # The next four are None: wganvae, the paper's form, has a blind critic and none of them; rpganvae, wgangpvae have
    # the values of common.config.SEEING.
    critic_condition: str | None = None  # none | projection: the critic sees the expression; Miyato & Koyama 2018
    mismatched_weight: float | None = None  # of real tiles with another patient's expression, as negatives
    cond_jitter: float | None = None  # sd of the noise on the expression in training; vicinal, Ding et al. 2021
    cond_dropout: float | None = None  # share of tiles trained without expression (a learned null)
    lr: float = 0.0  # a lone `lr` sets both rates below, with a warning
    lr_generator: float = 1e-4
    lr_critic: float = 4e-4
    equalised: bool = False  # residual: both in units of each layer's weights; Karras et al. 2018, section 4.1
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    penalty_weight: float = 10.0  # gradient penalty; Gulrajani et al. 2017, section 4
    gamma: float = 2.0  # weight of the zero-centred penalties of rpgan; Huang et al. 2024
    penalty_every: int = (
        8  # steps; rpgan's penalties are computed in one of so many. Karras et al. 2020, section 3.1: 16
    )
    penalty_form: str = "exact"  # rpgan's: exact | difference (along random signs: no second derivative)
    penalty_per: str = "image"  # image | batch (published: one norm and one epsilon for the whole batch)
    clip: float = 0.01  # weight clipping of loss `wgan`; Arjovsky et al. 2017, algorithm 1
    critic_steps: int = 1  # critic steps per generator step
    ema_images: int = 10000  # half-life of the generator's moving average, in images shown
    shuffle: str = "patients"  # patients: balanced and shuffled; slides: slide by slide (published)
    turns: bool = False  # each tile is shown turned and mirrored at random: 8 times as many, where none has an up
    augment: float = 0.0  # probability that a tile is shown turned, moved, cut out (each); for little data
    augment_images: int = 0  # images over which it rises from 0; 0: from the beginning
    schedule_images: int = 0  # images over which the next two are reached, along half a cosine; 0: neither changes
    lr_final: float = 1.0  # share of both learning rates that is left then
    gamma_final: float | None = None  # what gamma is then; None: what it was
    first_side: int = 0  # residual: pixels at which training begins, doubled until img_size; 0: img_size throughout
    grow_images: int = 0  # images until img_size is reached; each smaller side has an equal part of them
    enlarge_taps: int = 6  # residual: pixels of the filter that doubles sides: 4 or 6
    cache: str = "auto"  # where decoded tiles are kept: gpu | ram | none (read when needed) | auto: where they fit
    precision: str = "fp32"  # fp32 | bf16 (autocast; penalties stay fp32)
    compile: str = ""  # torch.compile's mode for training: default | reduce-overhead (CUDA graphs); empty: not compiled
    num_grid: int = 32  # tiles in each sample grid
    eval_every: int = 0  # images shown between two measurements of the kernel distance from held-out tiles; 0: none
    eval_tiles: int = 512  # tiles drawn for it, and real tiles of validation donors used, at most
    eval_extractor: str = "efficientnet_lite0"  # by whose features: efficientnet_lite0, inception, resnet50, ...
    eval_weights: str = ""  # its weights' file; efficientnet_lite0 brings its own
    feature_side: int = 0  # pixels at which an extractor sees the tiles; 0: its own side


def load_config(cls: type[T], path: str | Path, args: argparse.Namespace | None = None, **given: Any) -> T:
    """Return the settings of class `cls` from the JSON file `path`; flags in `args` and keywords in `given` win.

    InputError names the file and the key for an unknown key (with the nearest known name), a value of the wrong type,
    or a file that is not a JSON object. Keys that are unused are reported once on stderr.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a JSON object {{...}} was expected, found {type(values).__name__}")
    known = {f.name for f in fields(cls)}
    elsewhere = {f.name for c in (DataSettings, BetaVAESettings, GANSettings) for f in fields(c)} | set(UNUSED_KEYS)
    if unknown := sorted(set(values) - known - elsewhere):
        hint = did_you_mean(unknown[0], known | elsewhere, n=1)
        raise InputError(f"{path}: unknown setting(s) {shorten(unknown)}{hint}; remove or correct them")
    if unused := sorted(set(values) & set(UNUSED_KEYS)):
        warn(f"{path}: " + "; ".join(f"{key} is not used ({UNUSED_KEYS[key]})" for key in unused))
    flags = {k: v for k, v in vars(args).items() if k in known and v is not None} if args is not None else {}
    if "lr" in values | flags and cls is GANSettings:
        values |= _one_rate_for_both(path, values, flags)
    merged = {k: v for k, v in values.items() if k in known} | flags | {k: v for k, v in given.items() if k in known}
    hints = typing.get_type_hints(cls)
    return cls(**{key: _coerce(value, hints[key], f"{path}: {key}") for key, value in merged.items()})


def add_tile_limits(add: Callable[..., argparse.Action]) -> None:
    """Add the flags that choose among the tiles that were cut, by the scores kept with them."""
    add("--min_tissue", type=float, help="use tiles with this share of tissue or more, of those that were cut")
    add("--min_sharpness", type=float, help="likewise with this sharpness or more (prepare_data.py tiles)")
    add("--max_pen", type=float, help="likewise with at most this share of pixels in a pen's colour")


def add_parallel(add: Callable[..., argparse.Action], what: str = "the tiles") -> None:
    """Add the flag of a command that several processes can do; `what` they share."""
    add(
        "--parallel",
        type=int,
        default=0,
        help=f"0: one process; 1: one for each GPU of this machine; N: so many, on CPUs too. They share {what}; "
        "torchrun starts them as well, on several machines",
    )


def add_scale(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of training on several processes, and of a batch that is too large for a GPU."""
    add_parallel(add, "each batch")
    add(
        "--micro_batch",
        type=int,
        help="rows of a batch that pass through the networks at a time, of each process; 0: all, and half as many each "
        "time that a GPU's memory is too small (several processes try that before the first step). The result is the "
        "same, but for batch norm, whose statistics are then those of each pass (dcgan, beta-VAE): there a run keeps "
        "its value; the critic is then not compiled",
    )


def add_fit_scaler(add: Callable[..., argparse.Action]) -> None:
    """Add the flag that gives the published code's beta-VAE, which is weights only, its genes and scaler."""
    words = "for the published code's beta-VAE, which is weights only: tables that it was trained with, for the order "
    add("--fit_scaler", nargs="+", metavar="TABLE", help=words + "of genes, scaler and latent statistics")


def settings_dict(settings: DataSettings) -> dict[str, Any]:
    """Return the resolved settings as a plain dict: what is written to the run folder and into checkpoints."""
    return asdict(settings)


def _one_rate_for_both(path: str | Path, values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    rate = flags.get("lr", values.get("lr"))
    both = {k: rate for k in ("lr_generator", "lr_critic") if k not in values or "lr" in flags}
    if both and rate:
        warn(f"{path}: lr = {rate} sets {' and '.join(both)} (the published code ignored it and ran 1e-4 / 4e-4)")
        return both
    return {}


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the field's type, or raise InputError: 3 for a float and "a" for a list of one are accepted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _coerce(value, next(a for a in arguments if a is not type(None)), where)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_coerce(item, arguments[0], where) for item in items]
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str | int) and not isinstance(value, bool):  # "device": 0
        return str(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")
