"""What `prepare_data.py tiles` reports: report.csv, a row per slide, and report.html, the same to look at."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_text
from datasets.given import Given
from datasets.job import FAULTS, Outcome, TileSettings
from figures.slide_page import SlideRow, slide_page
from metrics.stains import stains_of

STAINS = ("haematoxylin", "eosin")  # columns in the place of the density that they are of


def write_reports(out: Path, outcomes: Sequence[Outcome], settings: TileSettings, given: Given) -> None:
    """Write report.csv and report.html into the folder of the stores, slides sorted by name."""
    outcomes = sorted(outcomes, key=lambda o: o.slide)
    write_text(out / "report.csv", _table(outcomes))
    lead = (
        f"Tiles of {settings.tile_size} pixels at {settings.mpp:g} um per pixel, at most {settings.max_tiles or 'all'} "
        f"of a slide{_chosen_by(settings, given)}."
    )
    write_text(out / "report.html", slide_page(f"Tiles: {out.name}", lead, [_row(out, o) for o in outcomes]))


def _chosen_by(settings: TileSettings, given: Given) -> str:
    """Return in words which tiles were looked at."""
    if given.coordinates and not given.masks:
        return ", at coordinates that were given"
    where = " at coordinates and" * bool(given.coordinates) + " in outlines that were given" * bool(given.masks)
    by = " by the published criteria" if settings.criteria == "published" else ""
    return f"{where}, with a tissue share of {settings.min_tissue:g} or more{by}"


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = {}
        for name, value in asdict(outcome).items():
            row |= dict(zip(STAINS, _stains(outcome), strict=True)) if name == "density" else {name: value}
        rows.append(row)
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _stains(outcome: Outcome) -> tuple[float | None, float | None]:
    """Return mean haematoxylin and eosin, log10 optical density; None where no tile was taken."""
    if outcome.density is None:
        return None, None
    haematoxylin, eosin = stains_of(np.array(outcome.density)).round(4).tolist()
    return haematoxylin, eosin


def _row(out: Path, outcome: Outcome) -> SlideRow:
    pictured = (out / "previews" / f"{outcome.slide}.jpg").exists()
    haematoxylin, eosin = _stains(outcome)
    return SlideRow(
        outcome.slide,
        outcome.status,
        outcome.tiles,
        outcome.candidates,
        {name: getattr(outcome, name) for name in FAULTS},
        outcome.mpp,
        outcome.mpp_source,
        outcome.tissue,
        haematoxylin,
        eosin,
        outcome.reason,
        pictured,
    )
