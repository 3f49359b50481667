"""Whether tables of pictures, or the GANs that made those pictures, know the donors that another table tests."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import shorten, warn
from datasets.image_table import ImageTable, Unlabelled, read_unlabelled_pictures
from datasets.leaks import HELD_OUT, TrainedOn, trained_by


def refuse_leaks(train: ImageTable, test: ImageTable) -> None:
    """InputError where a donor whom `test` calls held out (column split) has tiles in `train`, or trained a GAN that
    made tiles of it (column made_by)."""
    held_out = test.said["split"].isin(HELD_OUT).to_numpy()
    if test.groups is None or not held_out.any():
        return
    made_by = train.said["made_by"].to_numpy()
    models = [TrainedOn.read(path) for path in sorted(set(made_by) - {""})]
    if train.groups is not None:
        own = made_by == ""  # tiles of the donor, not tiles made from an expression profile
        models.append(TrainedOn(train.path, trained_by(train.groups[own], [])))
    for model in models:
        if model is not None:
            model.refuse_held_out(_tested(test), str(test.path))


def read_unlabelled(source: str, folder: str, test: ImageTable) -> tuple[Unlabelled, int]:
    """Return the pictures to pre-train on, and how many donors of `test` they come from, or from a GAN that knows them.

    InputError where `test` calls such a donor held out, else a warning.
    """
    found = read_unlabelled_pictures(source, folder)
    if test.groups is None:
        return found, 0
    models = [model for path in found.made_by if (model := TrainedOn.read(path))]
    if found.own_donors:
        models.append(TrainedOn(Path(source), trained_by(found.own_donors, [])))
    for model in models:
        model.refuse_held_out(_tested(test), str(test.path))
    seen = [donor for donor in np.unique(test.groups) if any(model.has_donor(donor) for model in models)]
    if seen:
        warn(
            f"--pretrain {source}: knows {len(seen)} donor(s) that {test.path} tests ({shorten(seen)}): what it gains "
            "is not what new donors would show; make the table with prepare_data.py toy --split test"
        )
    return found, len(seen)


def _tested(table: ImageTable) -> pd.DataFrame:
    """Return the donor and the split of each picture of a table."""
    return pd.DataFrame({"donor": table.groups, "split": table.said["split"].to_numpy()}, table.names)
