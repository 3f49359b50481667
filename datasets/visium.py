"""10x Visium folders (Space Ranger's outs/): places, scale and counts of one section.

`spatial/tissue_positions.csv` (with a header, Space Ranger 2 on) or `tissue_positions_list.csv` (without): barcode,
in_tissue, array_row, array_col, pxl_row_in_fullres, pxl_col_in_fullres. `spatial/scalefactors_json.json`:
spot_diameter_fullres. `*filtered_feature_bc_matrix.h5`: group `matrix`, CSC of shape (features, barcodes).

Spots lie 100 um apart on a hexagonal array: neighbours in a row two array columns apart, rows 50 x sqrt(3) um. The size
of a pixel follows from that, not from spot_diameter_fullres: the spots' own diameter is 55 um, yet the files state that
of a theoretical spot of 65 um (10x, Space Ranger's manual, "Spatial outputs"). It only has to agree within bounds.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from common.archives import refuse_false_hdf5
from common.errors import InputError, shorten
from common.files import read_json
from datasets.sections import Section
from datasets.text import open_text, split_line

PITCH_UM = 100.0
SPOT_UM = (45.0, 75.0)  # bounds of what spot_diameter_fullres may mean: 55 and 65 with room for the registration; ours
COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
MATRIX = "filtered_feature_bc_matrix.h5"
REMEDY = "download or make it again with Space Ranger"


def is_visium(folder: str | Path) -> bool:
    """Return whether a folder looks like Space Ranger's outs/."""
    return (Path(folder) / "spatial").is_dir()


def read_visium(folder: str | Path, image: str | Path) -> Section:
    """Read one Visium folder; `image` is its full-resolution image. The section is named after the folder (not outs).

    Features of other kinds than gene expression are left out. InputError names the file that is missing or damaged.
    """
    folder = Path(folder)
    named = folder.resolve()
    name = named.parent.name if named.name == "outs" else named.name
    spots = _read_positions(folder)
    scale = read_json(folder / "spatial" / "scalefactors_json.json")
    diameter = scale.get("spot_diameter_fullres") if isinstance(scale, dict) else None
    if not isinstance(diameter, int | float) or not diameter > 0:
        raise InputError(
            f"{folder / 'spatial' / 'scalefactors_json.json'}: no positive number spot_diameter_fullres; {REMEDY}"
        )
    source = _one_matrix(folder)
    counts, barcodes, genes, symbols = read_feature_matrix(source)
    return Section(
        name, Path(image), spots, counts, barcodes, genes, source, symbols, PITCH_UM, float(diameter), "in_tissue 0"
    )


def check_spot_diameter(section: Section, mpp: float) -> None:
    """InputError where a spot's diameter in the scale factors and the pixel size cannot both be true."""
    if section.spot_px is not None and not SPOT_UM[0] <= (um := section.spot_px * mpp) <= SPOT_UM[1]:
        path = section.source.parent / "spatial" / "scalefactors_json.json"
        raise InputError(
            f"{path}: spot_diameter_fullres {section.spot_px:g} is {um:.0f} um at {mpp:.4g} um per pixel, "
            f"{SPOT_UM[0]:g} to {SPOT_UM[1]:g} were expected; check that the folder's files are of one run, and --mpp"
        )


def read_feature_matrix(path: Path) -> tuple[sparse.csr_matrix, list[str], list[str], dict[str, str]]:
    """Return (counts (barcodes, genes), barcodes, feature ids, id -> symbol) of a filtered_feature_bc_matrix.h5."""
    try:
        refuse_false_hdf5(path)
        with h5py.File(path) as file:
            group = file["matrix"]
            shape = tuple(int(n) for n in group["shape"][:])  # (features, barcodes)
            parts = [group[part][:] for part in ("data", "indices", "indptr")]
            barcodes, ids, symbols = (_words(group[part]) for part in ("barcodes", "features/id", "features/name"))
            kinds = _words(group["features/feature_type"]) if "feature_type" in group["features"] else None
        if shape != (len(ids), len(barcodes)) or len(symbols) != len(ids):
            raise ValueError(f"shape {shape}, {len(ids)} features and {len(barcodes)} barcodes")
        counts = sparse.csc_matrix(tuple(parts), shape=shape).T.tocsr()
        counts.check_format()
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: not a readable feature-barcode matrix ({reason}); {REMEDY}") from None
    if counts.nnz and counts.data.min() < 0:
        raise InputError(f"{path}: negative values; raw counts were expected; {REMEDY}")
    if kinds is not None:
        genes = np.flatnonzero(np.array(kinds) == "Gene Expression")
        counts, ids, symbols = counts[:, genes], [ids[i] for i in genes], [symbols[i] for i in genes]
    if twice := pd.Index(barcodes)[pd.Index(barcodes).duplicated()].tolist():
        raise InputError(f"{path}: barcode {twice[0]} stands twice, each was expected once; {REMEDY}")
    return counts.astype(np.float32), barcodes, ids, dict(zip(ids, symbols, strict=True))


def _words(dataset: Any) -> list[str]:
    return [word.decode() if isinstance(word, bytes) else str(word) for word in dataset[:]]


def _one_matrix(folder: Path) -> Path:
    found = sorted(p for p in folder.glob(f"*{MATRIX}") if not p.name.startswith("."))
    if len(found) != 1:
        have = f"{len(found)} files ({shorten((p.name for p in found), 2)})" if found else "no such file"
        raise InputError(f"{folder / MATRIX}: {have}; one was expected in a folder of Visium; {REMEDY}")
    return found[0]


def _read_positions(folder: Path) -> pd.DataFrame:
    spatial = folder / "spatial"
    paths = [
        path for stem in ("tissue_positions", "tissue_positions_list") if (path := spatial / f"{stem}.csv").exists()
    ]
    if not paths:
        raise InputError(
            f"{spatial / 'tissue_positions.csv'}: missing, and tissue_positions_list.csv too (Visium HD, with its "
            f".parquet, is not supported); {REMEDY}"
        )
    path = paths[0]
    line_of: dict[str, int] = {}
    rows = []
    with open_text(path) as file:
        for line, text in enumerate(file, start=1):
            fields = split_line(text, ",")
            if not any(fields) or (line == 1 and fields[:1] == [COLUMNS[0]]):
                continue
            try:
                barcode, on_tissue, row, column, down, across = fields
                numbers = (int(on_tissue), int(row), int(column), float(down), float(across))
                if not np.isfinite(numbers).all():
                    raise ValueError
            except ValueError:
                raise InputError(
                    f"{path}: line {line}: {text.strip()[:80]!r}; {', '.join(COLUMNS)} were expected; {REMEDY}"
                ) from None
            if barcode in line_of:
                raise InputError(
                    f"{path}: line {line}: barcode {barcode} stands on line {line_of[barcode]} too, each was expected "
                    f"once; {REMEDY}"
                )
            line_of[barcode] = line
            on_tissue, row, column, down, across = numbers
            rows.append((column, row, column / 2, row * 0.75**0.5, across, down, on_tissue != 0))
    if not rows:
        raise InputError(f"{path}: no spot in it; {REMEDY}")
    columns = ["array_x", "array_y", "u", "v", "x", "y", "on_tissue"]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(list(line_of), dtype=object))
