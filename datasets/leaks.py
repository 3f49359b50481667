"""Whose data a model has seen, without their names, and the refusal to call them held out.

A checkpoint keeps `trained_donors`, the SHA-256 of the name of each donor that it was trained on, a GAN's with those of
its beta-VAE, and `trained_on`, marks of the rows (slides or samples). The file then names no patient to whoever reads
it; it does not hide one from somebody who has a list of names to try.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError, shorten, warn

HELD_OUT = ("val", "test")  # splits whose donors no model may have been trained on


def donor_digests(donors: Iterable[object]) -> list[str]:
    """Return the SHA-256 (64 hex digits) of each different donor's name, sorted."""
    return sorted({_digest(donor) for donor in donors})


def marks(names: Iterable[object]) -> list[str]:
    """Return the first 16 hex digits of the SHA-256 of each row's name, sorted."""
    return sorted(_digest(name)[:16] for name in names)


def spots_of(obs: pd.DataFrame) -> np.ndarray:
    """Return (n,) bool: rows that are spots of a section (array_x is not empty), of which a donor has hundreds."""
    return (obs["array_x"].astype(str) != "").to_numpy() if "array_x" in obs else np.zeros(len(obs), bool)


class TrainedOn:
    """Who trained the model at `path`, as its checkpoint's `state` says."""

    def __init__(self, path: str | Path, state: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.donors: set[str] | None = None if (found := state.get("trained_donors")) is None else set(found)
        self.rows: set[str] = set(state.get("trained_on") or ())

    @classmethod
    def read(cls, path: str | Path) -> "TrainedOn | None":
        """Return what the checkpoint at `path` says; None, with a warning, where it is not there any more."""
        if not Path(path).is_file():
            warn(f"{path}: no such checkpoint any more: whether held-out donors trained it cannot be looked up")
            return None
        from common.checkpoint import load_checkpoint  # torch takes seconds to import
        from common.torch_files import is_foreign

        return cls(path, {} if is_foreign(path) else load_checkpoint(path)[0])  # a published file does not say

    def has_donor(self, donor: object) -> bool:
        """Return whether the donor is known to have trained the model."""
        return self.donors is not None and _digest(donor) in self.donors

    def refuse(self, obs: pd.DataFrame, split: str, source: str = "the table at hand") -> None:
        """InputError where rows of `obs`, said to be in `split`, trained the model; a warning if its file is too old.

        `obs` has sample or slide names as index and the column donor. A row counts where it was trained on itself, or
        its donor was; of a spot's donor this is only told, once: a section may be divided between splits.
        """
        if obs.empty:
            return
        spots = spots_of(obs)
        donors = obs["donor"].astype(str)
        seen = [donor for donor in donors[~spots].unique() if self.has_donor(donor)]
        again = [str(name) for name in obs.index if _digest(name)[:16] in self.rows]
        for what, names in (("donor", seen), ("spot" if spots.all() else "row", again)):
            if names:
                what += "s" * (len(names) > 1)
                raise InputError(
                    f"{self.path}: was trained on {len(names)} {what} that {source} has in split {split}: "
                    f"{shorten(names)}; use the table (column assigned_split) and the split_seed that it was trained "
                    f"with, or train it again without the {what}"
                )
        if self.donors is None:
            _tell_once(
                self.path.resolve(),
                f"{self.path}: does not say which donors it was trained on (an older file, or a published one): that "
                "held-out ones are new to it rests on the table; train it again to have this checked",
            )
        elif shared := [donor for donor in donors[spots].unique() if self.has_donor(donor)]:
            _tell_once(
                self.path.resolve(),
                f"{self.path}: was trained on other spots of {shorten(shared)}: the held-out spots are new to it, the "
                "patients are not",
            )

    def refuse_held_out(self, obs: pd.DataFrame, source: str = "the table at hand") -> None:
        """Refuse, or warn, as `refuse` does, for the rows of each split in HELD_OUT by the column split."""
        for split in HELD_OUT:
            self.refuse(obs[obs["split"] == split], split, source)


def trained_by(donors: Iterable[object], rows: Iterable[object], *others: TrainedOn) -> dict[str, list[str]]:
    """Return what a checkpoint stores of these donors and rows, and of who trained the models that it builds on."""
    digests, kept = set(donor_digests(donors)), set(marks(rows))
    for other in others:
        digests |= other.donors or set()
        kept |= other.rows
    return {"trained_donors": sorted(digests), "trained_on": sorted(kept)}


def refuse_torn_donors(obs: pd.DataFrame, splits: list[str], source: str) -> None:
    """InputError where a donor's rows are in several splits. Spots may be: they are divided by section and block."""
    rows = pd.DataFrame({"donor": obs["donor"].astype(str), "split": splits}, obs.index)[~spots_of(obs)]
    first = rows[~rows.duplicated()]  # of each donor and split
    torn = first[first.duplicated("donor", keep=False)]
    if len(torn):
        donor = torn["donor"].iloc[0]
        where = ", ".join(f"{name} in {split}" for name, split in torn["split"][torn["donor"] == donor].items())
        raise InputError(
            f"{source or 'the table'}: donor {donor}: {where}; one split for all rows of a donor was expected, "
            "whatever the tissue: correct column assigned_split"
        )


@functools.cache
def _tell_once(path: Path, message: str) -> None:
    """Warn, once for each checkpoint, however often it is opened; `path` is absolute."""
    warn(message)


def _digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()
