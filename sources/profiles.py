"""Expression profiles of a table as a GAN takes them: encoded by the VAE, standardised with its training statistics."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.checkpoint import resolve_checkpoint
from common.errors import InputError, shorten, warn
from datasets.expression import ExpressionTable, splits_of
from datasets.leaks import HELD_OUT, TrainedOn
from models.cloud import Distances
from models.conditioning import LATENT_FLOOR, InputRule
from sources.vae import NOTHING, Fit, open_vae

MANY, SOME_ARE_FAR = 20, 0.1  # profiles; share of them that is told of: one in a hundred is far by definition; ours


class Profiles:
    """The profiles of a table, encoded when asked for. Gene order and scaling come from the VAE, never the table."""

    def __init__(
        self,
        vae_path: str | Path,
        table: ExpressionTable,
        device: torch.device | str = "cpu",
        rule: InputRule = InputRule(),  # noqa: B008 (frozen)
        fit: Fit = NOTHING,
    ) -> None:
        """Open the VAE and align `table` with its genes. `fit`: what a published VAE gets its scaler from.

        InputError: no such VAE, too few of its genes in the table, counts for a VAE of another unit, a column
        assigned_split with other words than splits.
        """
        self.path = resolve_checkpoint(vae_path)
        self.vae, self.vae_digest = open_vae(self.path, device, fit)
        self.trained_on = [TrainedOn(self.path, self.vae.state)]  # and a GAN that the profiles are for
        self.table, self.rule = table, rule
        self.split_seed = self.vae.split_seed
        self._splits = splits_of(table.obs, self.split_seed, table.source)
        self._values, self.coverage = table.aligned(self.vae.genes, self.vae.min_gene_coverage, self.vae.unit)
        if self.vae.latent_mean is None:
            raise InputError(f"{self.path}: holds no latent statistics; finish the training of the beta-VAE")
        self.mean, self.std = self.vae.latent_mean.cpu(), self.vae.latent_std.cpu()  # (z,) each
        if not bool((self.std >= LATENT_FLOOR).any()):
            raise InputError(
                f"{self.path}: no latent dimension varies between training donors (largest sd {self.std.max():.2g}): "
                "the beta-VAE encodes nothing; train it longer or with a smaller beta"
            )

    def condition(self, name: str) -> torch.Tensor:
        """Return what the profile of sample or slide `name` brings to the generator's input, (z,), on the CPU."""
        return self.conditions([self.table.find(name)])[0]

    def conditions(self, names: Sequence[str] | Sequence[int] | None = None) -> torch.Tensor:
        """Return (n, z) for the named samples, row numbers, or all rows of the table; warn of those that are far.

        Far: see models/cloud.py.
        """
        rows = self._rows(names)
        mu, misfit = self.vae.measure(torch.from_numpy(self._values[rows]))
        if self.vae.cloud is None:
            say_that_distances_are_unknown(self.path)
        else:
            self.warn_of_far(rows, self.vae.cloud.distances(mu, misfit))
        return self.rule.condition(mu, self.mean, self.std)

    def distances(self, names: Sequence[str] | Sequence[int] | None = None) -> Distances | None:
        """Return how far the named samples, row numbers, or all rows are from the training cloud.

        None, said once, where the VAE's checkpoint holds no record to compare with.
        """
        if self.vae.cloud is None:
            say_that_distances_are_unknown(self.path)
            return None
        return self.vae.distances(torch.from_numpy(self._values[self._rows(names)]))

    def warn_of_far(self, rows: Sequence[int] | np.ndarray, distances: Distances) -> None:
        """Tell the user which of the rows lie beyond the percentile of models/cloud.py, if any.

        Of MANY rows some always do: then only where they are more than SOME_ARE_FAR of them.
        """
        names = [str(self.table.obs.index[row]) for row in rows]
        if distances.far.sum() > (SOME_ARE_FAR * len(names) if len(names) >= MANY else 0):
            far = [name for name, is_far in zip(names, distances.far, strict=True) if is_far]
            warn(
                f"{shorten(far)}: far from the training cloud: {distances.summary(names)}: the model has seen nothing "
                "like it (another platform, unit or tissue?); prepare_data.py expression --harmonise may help"
            )

    def _rows(self, names: Sequence[str] | Sequence[int] | None) -> np.ndarray:
        if names is None:
            return np.arange(len(self.table))
        return np.array([self.table.find(x) if isinstance(x, str) else int(x) for x in names], np.int64)

    def split(self, name: str | int) -> str:
        """Return the split of a sample: the one that the table assigns it, else its donor's under the VAE's seed.

        InputError where that is a held-out split and the donor was trained on.
        """
        row = self.table.find(name) if isinstance(name, str) else int(name)
        split = self._splits[row]
        if split in HELD_OUT:
            self.refuse_trained(split, [row])
        return split

    def refuse_trained(self, split: str, rows: Sequence[int] | None = None) -> None:
        """InputError where `rows` (None: those in `split`), said to be in `split`, trained the VAE or the GAN."""
        rows = [row for row, own in enumerate(self._splits) if own == split] if rows is None else list(rows)
        for model in self.trained_on:
            model.refuse(self.table.obs.iloc[rows], split, self.table.source)

    def held_out(self, split: str = "test", at_most: int | None = None) -> list[str]:
        """Return the names of the samples in `split` (see `split`), in the table's order; never empty.

        With `at_most`, the first so many, the tissues in turn. InputError where one of their donors was trained on.
        """
        names = [str(name) for name, own in zip(self.table.obs.index, self._splits, strict=True) if own == split]
        if not names:
            raise InputError(f"{self.table.source}: none of {len(self.table)} rows is in split {split}; add donors")
        self.refuse_trained(split)
        if at_most is None:
            return names
        tissue = self.table.obs["tissue"].loc[names]
        turn = tissue.groupby(tissue).cumcount()  # a tissue's first, second...
        return list(turn.sort_values(kind="stable").index[:at_most])


@functools.cache
def say_that_distances_are_unknown(path: Path) -> None:
    """Tell the user, once for a checkpoint, that it cannot tell which profiles are far."""
    warn(
        f"{path}: holds no validation donors' distances (an older file, or too few donors): how far a profile is from "
        "the training cloud cannot be told; train the beta-VAE again to know"
    )
