"""The join of tiles and expression: which slides a stage uses, which row of the table each tile belongs to."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.checkpoint import content_digest
from common.config import DataSettings
from common.errors import InputError, did_you_mean, shorten
from common.files import write_text
from common.run import generator_for
from datasets.expression import ExpressionTable, read_cohort_tables
from datasets.keys import donor_of, slide_key, slug, split_of
from datasets.tile_limits import TileLimits
from datasets.tiles import TileStore, open_stores
from datasets.tileset import TileSet

COLUMNS = ["slide", "donor", "tissue", "split"]
NO_ROW = "no row in"  # how the reason begins why a slide, and not a row, is left out
PATIENT_REMEDY = "name another patient, or add the slide (prepare_data.py tiles) or the row that is missing"


@dataclass
class Cohort:
    """Slides with tiles and, where the config names tables, their expression.

    `row_of_tile` (N,) is tile i's row in `table`; without a table its row in `slides`. `slides` has the columns slide
    (key), donor, tissue, split, row, n_tiles, in the order of `tiles.stores`. `left_out` lists what could not be
    joined, as (name, reason): rows without tiles, slides without a row.
    """

    table: ExpressionTable | None
    tiles: TileSet
    row_of_tile: np.ndarray
    slides: pd.DataFrame
    left_out: list[tuple[str, str]]

    @cached_property
    def patient_of_tile(self) -> np.ndarray:
        """Return (N,) numbers: tiles of one donor, tissue and profile share one, however many slides they are from.

        With a table, a donor's slides with different profiles (the spots of a section) are different patients.
        """
        whose = self.slides["donor"].astype(str) + " " + self.slides["tissue"].astype(str)
        if self.table is not None:
            whose += [f" {content_digest(torch.from_numpy(profile))}" for profile in self.table.values]
        return pd.factorize(whose)[0][self.tiles.slide_index]

    def tiles_of(self, patient: str) -> np.ndarray:
        """Return the tile indices of a patient: a slide's name (with or without suffix), a sample's, or a donor's.

        InputError where there are none: with the reason if it was left out, else with the nearest names.
        """
        key = slide_key(str(patient))
        mine = self.slides["slide"] == key
        if not mine.any() and self.table is not None and patient in self.table.obs.index:
            mine = self.slides["row"] == self.table.obs.index.get_loc(patient)
        if not mine.any():
            mine = self.slides["donor"] == patient
        if mine.any():
            return np.flatnonzero(np.isin(self.tiles.slide_index, np.flatnonzero(mine)))
        folders = shorten(dict.fromkeys(store.path.parent for store in self.tiles.stores))
        for name, reason in self.left_out:
            if patient == name or key in (slide_key(name), donor_of(name)):
                raise InputError(f"{folders}: patient {patient}: {reason}; {PATIENT_REMEDY}")
        near = did_you_mean(key, self.slides["slide"])
        raise InputError(
            f"{folders}: patient {patient}: not among the {len(self.slides)} slides with tiles{near}; {PATIENT_REMEDY}"
        )

    def summary(self) -> str:
        """Return one line for the log: how many slides, donors and tiles, and what was left out, by name."""
        counts = f"{len(self.slides)} slides of {self.slides['donor'].nunique()} donors, {len(self.tiles)} tiles"
        if not self.left_out:
            return counts
        return f"{counts}; left out {len(self.left_out)}: {shorten(f'{n} ({why})' for n, why in self.left_out)}"


def write_left_out(cohort: Cohort, folder: str | Path) -> Path | None:
    """Write all that could not be joined to <folder>/left_out.csv, columns name and reason; return its path.

    Where nothing was left out there is no such file, and None is returned; `summary` names five at most.
    """
    path = Path(folder) / "left_out.csv"
    if not cohort.left_out:
        path.unlink(missing_ok=True)
        return None
    write_text(path, pd.DataFrame(cohort.left_out, columns=["name", "reason"]).to_csv(index=False))
    return path


def open_cohort(
    settings: DataSettings, splits: Sequence[str] | None = ("train",), need_expression: bool = True
) -> Cohort:
    """Join the tile folders and the tables that `settings` names; keep the donors of `splits` (None: all).

    A row and a slide match by the table's `wsi_file_name`; table i is joined with tile folder i, or all with the only
    folder. A slide takes part with at most `max_patch_per_wsi` tiles, all within the settings' limits of tissue,
    sharpness and pen. Without `path_csv` all slides are used, `table` is None and donors are read from the slides'
    names. InputError: no tiles at all, `need_expression` without tables, nothing left after the join, a damaged store.
    """
    if not settings.patch_data_path:
        raise InputError("patch_data_path is empty: name the tile folders in the config or with --patch_data_path")
    folders = [open_stores(folder) for folder in settings.patch_data_path]
    if settings.path_csv:
        table, slides, stores, left_out = _join(settings, folders)
    elif need_expression:
        raise InputError("path_csv is empty: this stage needs expression; name the tables in the config")
    else:
        table, (slides, stores), left_out = None, _all_slides(settings, folders), []
    return _keep_splits(settings, splits, table, slides, stores, left_out)


class PatientBatches:
    """Batches of tile indices: shuffled, every patient equally often.

    `patient_of_tile` (N,) says whose each tile is. Patients are dealt in rounds, each once per round in a new order; a
    patient's tiles are gone through without repeats before any returns. A batch holds at least
    min(patients, batch_size / 2) patients. It depends on the arguments alone: nothing to save or resume. What depends
    on the number of tiles is done once, here, not for each batch.
    """

    def __init__(self, patient_of_tile: np.ndarray, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._order = np.argsort(patient_of_tile, kind="stable")  # tiles, patient by patient
        rows = np.asarray(patient_of_tile)[self._order]
        self._starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
        self._counts = np.diff(np.append(self._starts, len(rows)))  # tiles of each patient
        self._round = functools.lru_cache(maxsize=4)(partial(_shuffled, len(self._starts), seed, "patients"))

    def of(self, step: int) -> np.ndarray:
        """Return the tile indices (batch_size,) of batch `step`."""
        chosen = np.empty(self.batch_size, np.int64)
        for i in range(self.batch_size):
            visit, seat = divmod(step * self.batch_size + i, len(self._starts))
            patient = int(self._round(visit)[seat])
            n_tiles = int(self._counts[patient])
            again, turn = divmod(visit, n_tiles)
            tile = _shuffled(n_tiles, self.seed, "tiles", patient, again)[turn]
            chosen[i] = self._order[self._starts[patient] + tile]
        return chosen


def _shuffled(n: int, seed: int, *place: int | str) -> np.ndarray:
    return torch.randperm(n, generator=generator_for(seed, *place)).numpy()


def _join(
    settings: DataSettings, folders: list[dict[str, TileStore]]
) -> tuple[ExpressionTable, pd.DataFrame, list[TileStore], list[tuple[str, str]]]:
    """Return the rows that have tiles, for each in the same order a line of `slides` and a store, and the left out."""
    if len(folders) not in (1, len(settings.path_csv)):
        raise InputError(
            f"patch_data_path: {len(folders)} folders for {len(settings.path_csv)} tables; "
            "expected one, or one per table in the same order"
        )
    table, limits = read_cohort_tables(settings), TileLimits.of(settings)
    kept, lines, stores, left_out = [], [], [], []
    taken: set[tuple[int, str]] = set()
    for number, (name, obs) in enumerate(table.obs.iterrows()):
        folder = min(int(obs["table"]), len(folders) - 1)
        slide = obs["wsi_file_name"]
        key = slide_key(slide) if isinstance(slide, str) and slide else ""
        store = folders[folder].get(key)
        if not key:
            left_out.append((str(name), "the table names no slide for it"))
        elif store is None or not len(limits.numbers(store)):
            left_out.append((str(name), f"no tiles of {key} in {settings.patch_data_path[folder]}{limits}"))
        elif (folder, key) in taken:
            left_out.append((str(name), f"slide {key} already belongs to an earlier row"))
        else:
            taken.add((folder, key))
            lines.append((key, obs["donor"], obs["tissue"], obs["split"]))
            kept.append(number)
            stores.append(store)
    for folder, found in enumerate(folders):
        where = settings.path_csv[folder] if len(folders) > 1 else shorten(settings.path_csv)
        left_out += [(key, f"{NO_ROW} {where}") for key in found if (folder, key) not in taken]
    if not kept:
        reasons = shorten((f"{name} ({reason})" for name, reason in left_out), 3)
        raise InputError(
            f"{shorten(settings.path_csv)}: none of {len(table.obs)} rows has tiles in "
            f"{shorten(settings.patch_data_path)}: {reasons}; check that wsi_file_name holds the slides' names"
        )
    mask = np.zeros(len(table.obs), bool)
    mask[kept] = True
    return table.rows(mask), pd.DataFrame(lines, columns=COLUMNS), stores, left_out


def _all_slides(settings: DataSettings, folders: list[dict[str, TileStore]]) -> tuple[pd.DataFrame, list[TileStore]]:
    """Return one line per slide with tiles, and its store; donor from the slide's name, tissue from the settings."""
    lines, stores, limits = [], [], TileLimits.of(settings)
    for number, (path, found) in enumerate(zip(settings.patch_data_path, folders, strict=True)):
        named = settings.tissues[number] if number < len(settings.tissues) else Path(path).name
        for key, store in found.items():
            if len(limits.numbers(store)):
                donor = donor_of(key)
                lines.append((key, donor, slug(named), split_of(donor, settings.split_seed)))
                stores.append(store)
    return pd.DataFrame(lines, columns=COLUMNS), stores


def _keep_splits(
    settings: DataSettings,
    splits: Sequence[str] | None,
    table: ExpressionTable | None,
    slides: pd.DataFrame,
    stores: list[TileStore],
    left_out: list[tuple[str, str]],
) -> Cohort:
    keep = slides["split"].isin(splits).to_numpy() if splits is not None else np.ones(len(slides), bool)
    if not keep.any():
        counts = ", ".join(f"{n} {split}" for split, n in slides["split"].value_counts().items()) or "none"
        raise InputError(
            f"{shorten(settings.patch_data_path)}: no slide of split {'/'.join(splits or ['any'])} "
            f"(slides: {counts}); the cohort is too small to split: add donors"
        )
    slides = slides[keep].reset_index(drop=True)
    if table is not None:
        table = table.rows(keep)
    slides["row"] = np.arange(len(slides))
    tiles = TileSet(
        [store for store, kept in zip(stores, keep, strict=True) if kept],
        settings.img_size,
        settings.max_patch_per_wsi,
        settings.seed,
        TileLimits.of(settings),
    )
    slides["n_tiles"] = np.bincount(tiles.slide_index, minlength=len(slides))
    return Cohort(table, tiles, tiles.slide_index, slides, left_out)
