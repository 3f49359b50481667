"""Foreign AnnData files (.h5ad), scanpy's and others', as matrices. Such a file is read whole, then selected from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import InputError
from datasets.genes import is_ensembl
from datasets.h5ad import open_h5ad
from datasets.matrices import REMEDY, Matrix, Predicate
from datasets.units import LOGS, ValueStats

PART = 256  # samples made dense at once
ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id")  # of var, as scanpy and CELLxGENE write it


def read_anndata(
    path: Path, orientation: str | None, wanted_gene: Predicate, wanted_sample: Predicate, drop: bool
) -> Matrix:
    """Read X of an AnnData file. Ensembl ids are taken from var's names or one of its id columns; uns tells a log1p."""
    data = open_h5ad(path)
    down, across = (sum(map(is_ensembl, map(str, names))) for names in (data.obs_names, data.var_names))
    turned = orientation == "rows" or (orientation is None and down > across)
    data = data.T if turned else data
    genes, id_column = [str(g) for g in data.var_names], "var_names"
    if not any(map(is_ensembl, genes)):
        for column in ID_COLUMNS:
            if column in data.var and any(map(is_ensembl, data.var[column].astype(str))):
                genes, id_column = data.var[column].astype(str).tolist(), f"var[{column!r}]"
                break
    rows = np.array([i for i, name in enumerate(data.obs_names) if wanted_sample(str(name))], np.int64)

    def parts() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(rows), PART):
            part = data.X[rows[start : start + PART]]
            yield start, np.asarray(part.toarray() if hasattr(part, "toarray") else part, np.float32)

    lacking = np.zeros(len(genes), bool)
    for _, part in parts() if drop else ():
        lacking |= np.isnan(part).any(0)
    keep = np.array([j for j, gene in enumerate(genes) if not lacking[j] and wanted_gene(gene)], np.int64)
    values, stats = np.empty((len(rows), len(keep)), np.float32), ValueStats(len(rows), int((~lacking).sum()))
    negative = ""

    def first_of(bad: np.ndarray, part: np.ndarray, start: int) -> str:
        row, column = np.argwhere(bad)[0]
        return f"{path}: sample {data.obs_names[rows[start + row]]}, gene {genes[column]}: {part[row, column]}"

    for start, part in parts():
        bad = np.isinf(part) if drop else ~np.isfinite(part)
        if bad.any():
            raise InputError(f"{first_of(bad, part, start)}, a finite number was expected; {REMEDY}")
        if not negative and (part < 0).any():
            negative = f"{first_of(part < 0, part, start)}, a finite number of at least 0 was expected"
        stats.add(part[:, ~lacking] if drop else part, slice(start, start + PART))
        values[start : start + PART] = part[:, keep]
    words = data.obs.iloc[rows].astype(object)
    facts = {
        "format": "h5ad",
        "orientation": f"genes in {'rows' if turned else 'columns'} (obs x var)",
        "orientation_found_by": "given with --orientation" if orientation else "where the Ensembl ids stand",
        "gene_column": id_column,
        "samples_in_file": data.n_obs,
        "genes_in_file": data.n_vars,
        "genes_lacking_values": [genes[j] for j in np.flatnonzero(lacking)],
        "unit_hint": _unit_hint(data.uns),
    }
    frame = words.where(words.notna(), "").astype(str).reset_index(drop=True)

    def find_negative(remedy: str) -> None:
        if negative:
            raise InputError(f"{negative}; {remedy}")

    names = [str(data.obs_names[i]) for i in rows]
    return Matrix(values, names, [genes[j] for j in keep], frame, stats, facts, find_negative=find_negative)


def _unit_hint(uns: object) -> str | None:
    """Return the unit and log that the file itself states, as --unit takes them: our `unit`, scanpy's log1p."""
    words = [str(uns["unit"]).lower()] if "unit" in uns else []
    if "log1p" in uns:
        base = dict(uns["log1p"]).get("base")
        base = np.e if base is None else float(base)
        words += [name for name, (b, one) in LOGS.items() if one and abs(b - base) < 1e-6]
    return " ".join(words) or None
