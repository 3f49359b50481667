"""A beta-VAE from its file: one of ours, or the published code's weights with what --fit_scaler makes for them.

The published file holds weights only. Its scaler was fitted by each stage anew, on the table at hand; here it is fitted
once, on the training rows of the tables that are named, with the published logarithm. So are the latent statistics.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import content_digest, resolve_checkpoint
from common.config import DataSettings
from common.errors import InputError, shorten, warn
from datasets.expression import read_cohort_tables
from models.betavae import TrainedVAE, finished_state
from models.expression_scaler import ExpressionScaler
from models.published import Published, open_published

TRANSFORM = "ln_nonzero"  # RNA-GAN src/histopathology_gan.py:133-136
NO_BETTER = 0.9  # error of the reconstruction of z-scores, whose variance is 1: the gene's mean has 1; ours


@dataclass(frozen=True)
class Fit:
    """What --fit_scaler names: tables, and the split of their donors. Without tables nothing is fitted."""

    tables: tuple[str, ...] = ()
    split_seed: int = DataSettings.split_seed

    @classmethod
    def of(cls, settings: DataSettings) -> "Fit":
        """Return what the settings say."""
        return cls(tuple(settings.fit_scaler), settings.split_seed)


NOTHING = Fit()


def open_vae(path: str | Path, device: torch.device | str = "cpu", fit: Fit = NOTHING) -> tuple[TrainedVAE, str]:
    """Return the model at `path`, a file or a run folder, and its digest; what the file is, it says itself.

    Of the published code's weights with a scaler the digest is that of weights, genes, and the rows that were fitted
    on, the same on every machine. InputError where such a file comes without `fit`.
    """
    file = resolve_checkpoint(path)
    published = open_published(file)
    if published is None:
        if fit.tables:
            warn(f"{file}: has its own scaler: --fit_scaler {shorten(fit.tables)} is not used")
        vae, digest = TrainedVAE.open(file, device)
        return vae, origin["digest"] if (origin := vae.state.get("published")) else digest
    state = fitted(published, fit, device)
    return TrainedVAE(state, device, file), state["published"]["digest"]


def origin_of(vae: TrainedVAE) -> dict[str, Any]:
    """Return what a result says of a published beta-VAE: how its scaler was made. Nothing of one of ours."""
    return {"vae_published": vae.state["published"]} if "published" in vae.state else {}


def fitted(published: Published, fit: Fit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state of a checkpoint of kind "betavae" (models/betavae.py) and say what was made for it.

    Genes: the first table's columns in their order. Scaler and latent statistics: the tables' rows of split train, by
    `assigned_split` or by donor; the distances to compare with: those of split val. `published` in the state says so.
    InputError where no table is named, one has another number of genes, or such rows are too few.
    """
    args, names = published.betavae()
    path, count = published.file.path, args["n_genes"]
    if not fit.tables:
        raise InputError(
            f"{path}: is the published code's beta-VAE: weights only. The order of its {count} genes, their scaler and "
            "their unit are not in it; name the tables that it was trained with, --fit_scaler TABLE [TABLE ...]"
        )
    table = read_cohort_tables(DataSettings(path_csv=list(fit.tables), split_seed=fit.split_seed))
    if len(table.genes) != count:
        raise InputError(
            f"--fit_scaler {shorten(fit.tables)}: {len(table.genes)} genes, {path} takes {count}; name the tables that "
            "it was trained with: their gene columns are its genes, in that order"
        )
    split = table.obs["split"].to_numpy()
    train, held_out = (torch.from_numpy(table.values[split == name]) for name in ("train", "val"))
    if len(train) < 2 or not len(held_out):
        raise InputError(
            f"--fit_scaler {shorten(fit.tables)}: {len(train)} rows of split train and {len(held_out)} of val, at "
            "least 2 and 1 were expected; name tables of more donors, or fill their column assigned_split"
        )
    scaler, weights = ExpressionScaler.fit(train, TRANSFORM), published.weights(names)
    own = content_digest(weights)
    origin = {
        "digest": content_digest([own, table.genes, TRANSFORM, train, fit.split_seed]),
        "weights_digest": own,
        "fit_scaler": [Path(name).name for name in fit.tables],
        "transform": TRANSFORM,
        "rows": f"{len(train)} of split train, split_seed {fit.split_seed}",
    }
    state = {"model_args": args, "model": weights, "genes": table.genes, "unit": table.unit, "scaler": scaler.state()}
    state |= {"split_seed": fit.split_seed, "min_gene_coverage": DataSettings.min_gene_coverage}
    state |= {"missing_genes": scaler.missing, "settings": {}, "epoch": None, "validation": None, "published": origin}
    state = finished_state(state, train, table.obs["tissue"][split == "train"].tolist(), held_out, device)
    error = float(state["residual_std"].square().mean())
    origin["held_out_error"] = round(error, 4)
    _say_once(path.resolve(), path, fit, count, origin["weights_digest"], origin["rows"], error)
    return state


@functools.cache
def _say_once(_: Path, path: Path, fit: Fit, genes: int, digest: str, rows: str, error: float) -> None:
    """Tell the user, once for each file and fit, what was made of the tables and whether the weights know them."""
    tables = shorten(fit.tables)
    print(
        f"{path}: the published code's beta-VAE, weights {digest[:12]}; from {tables}: order of the {genes} genes, "
        f"scaler ({TRANSFORM}) and latent statistics of {rows}; held-out rows are reconstructed with error {error:.3g} "
        "(1: no better than the mean)",
        flush=True,
    )
    if error > NO_BETTER:
        warn(
            f"{path}: reconstructs held-out rows of {tables} no better than each gene's mean does (error {error:.3g}): "
            "other genes or another order, unit or platform than it was trained with?"
        )
