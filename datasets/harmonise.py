"""Profiles of another platform brought to the scale of a reference: training donors of the table behind a model.

Both methods work on log1p of the genes that both tables have, tissue by tissue, and keep the profiles' order:
    quantile    each profile's r-th lowest value becomes the mean r-th lowest value of the reference profiles; equal
                values get the mean of their ranks' (Bolstad et al. 2003, Bioinformatics 19:185, section 2.3). What one
                gene is shifted by against the others stays.
    reference   each gene is moved and stretched to the reference's mean and sd (ComBat's model of location and scale
                without its empirical Bayes step: Johnson, Li & Rabinovic 2007, Biostatistics 8:118, section 3). Both
                groups are taken for the same mix of people: a difference of disease or sex goes with the platform's.
Genes that the reference lacks cannot be brought to its scale and are left out.
"""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, shorten
from common.files import sha256_of
from datasets.expression import ExpressionTable, read_expression, refuse_other_unit, splits_of
from datasets.genes import gene_key
from datasets.keys import slug

METHODS = ("quantile", "reference")
LEAST_PROFILES = 8  # for `reference`; the sd of n values is known to 1 / sqrt(2 (n - 1)): 27 % for 8. Ours
LEAST_REFERENCE = 8  # training profiles of a tissue, for both; ours
LEAST_SHARED = 0.5  # of the reference's genes; ours
COLUMN = "harmonised"  # of obs: how a row was harmonised; travels with the table, so that nothing is harmonised twice


def read_reference(path: str | Path, split_seed: int) -> ExpressionTable:
    """Return the training donors' rows of the table at `path` (its assigned_split, else the hash of split_seed).

    InputError where there are none.
    """
    table = read_expression(path)
    train = np.array([split == "train" for split in splits_of(table.obs, split_seed, table.source)])
    if not train.any():
        raise InputError(f"{path}: none of its {len(table)} rows is in split train; name the table of the training")
    return table.rows(train)


def refuse_harmonised(table: ExpressionTable) -> None:
    """InputError where rows of `table` have been harmonised before."""
    done = [str(how) for how in table.obs.get(COLUMN, []) if str(how)]
    if done:
        raise InputError(
            f"{table.source}: {len(done)} of {len(table)} profiles are harmonised already (column {COLUMN}: {done[0]})"
            "; start from the original matrix, or leave --harmonise out"
        )


def harmonise(
    table: ExpressionTable, reference: ExpressionTable, method: str, tissue: str | None = None
) -> tuple[ExpressionTable, dict[str, Any]]:
    """Return `table` on the scale of `reference` (training rows, see `read_reference`), and the report of it.

    `method` is one of METHODS. A profile is compared with the reference's profiles of its own tissue, or of `tissue`.
    The result has the genes of both, in the table's order, and the reference's unit, and says in obs how it was made.
    InputError: harmonised already, counts against another unit, too few shared genes, no such tissue, too few profiles.
    """
    refuse_harmonised(table)
    refuse_other_unit(table.source, table.unit, reference.unit)
    column_of = {gene_key(gene): j for j, gene in enumerate(reference.genes)}
    mine = np.array([j for j, gene in enumerate(table.genes) if gene_key(gene) in column_of], np.int64)
    if len(mine) < LEAST_SHARED * len(reference.genes):
        raise InputError(
            f"{table.source}: shares {len(mine)} genes with the {len(reference.genes)} of {reference.source}, at least "
            f"{LEAST_SHARED:.0%} were expected; make it with the same --genes, or name another --reference"
        )
    genes = [table.genes[j] for j in mine]
    theirs = [column_of[gene_key(gene)] for gene in genes]
    counterparts = [_counterpart(table, reference, own, tissue) for own in table.obs["tissue"]]
    values, how, groups = np.empty((len(table), len(genes)), np.float32), [""] * len(table), {}
    for name in dict.fromkeys(counterparts):
        rows = [i for i, counterpart in enumerate(counterparts) if counterpart == name]
        model = np.flatnonzero((reference.obs["tissue"] == name).to_numpy())
        _refuse_few(table, reference, method, name, len(rows), len(model))
        logs = np.log1p(reference.values[np.ix_(model, theirs)])
        moved = FORMULAS[method](np.log1p(table.values[np.ix_(rows, mine)]), logs)
        values[rows] = np.maximum(np.expm1(moved), 0)
        for i in rows:
            how[i] = f"{method} onto {name} of {Path(reference.source).name}"
        groups[name] = {"profiles": len(rows), "reference_profiles": len(model)}
    kept = {gene_key(gene) for gene in genes}
    report = {
        "method": method,
        "scale": f"log1p of {reference.unit}",
        "unit_before": table.unit,
        "unit": reference.unit,
        "reference": reference.source,
        "reference_sha256": sha256_of(reference.source),
        "tissues": groups,
        "genes_shared": len(genes),
        "genes_left_out": [gene for gene in table.genes if gene_key(gene) not in kept],
    }
    obs = table.obs.assign(**{COLUMN: how})
    return ExpressionTable(values, genes, obs, reference.unit, table.source, table.symbols), report


def quantile_normalise(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return x (n, genes) with each row's values replaced, rank by rank, by the mean sorted row of `reference`.

    `reference` is (m, genes); equal values of a row get the mean over their ranks. Same dtype as x.
    """
    target = np.sort(reference, axis=1).mean(0, dtype=np.float64)  # (genes,)
    up_to = np.concatenate([[0.0], np.cumsum(target)])
    moved = np.empty_like(x)
    for row, out in zip(x, moved, strict=True):
        _, place, count = np.unique(row, return_inverse=True, return_counts=True)
        end = np.cumsum(count)
        out[:] = ((up_to[end] - up_to[end - count]) / count)[place]
    return moved


def match_location_and_scale(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return x (n, genes) with each gene's mean and sd over rows as in `reference` (m, genes).

    A gene that is the same in all rows of x says nothing of its scale: it gets the reference's mean.
    """
    mean, std, target = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64), reference.mean(0, dtype=np.float64)
    stretch = np.where(std > 1e-6, reference.std(0, dtype=np.float64) / np.maximum(std, 1e-6), 0.0)
    return ((x - mean) * stretch + target).astype(x.dtype)


FORMULAS = {"quantile": quantile_normalise, "reference": match_location_and_scale}


def _counterpart(table: ExpressionTable, reference: ExpressionTable, own: str, asked: str | None) -> str:
    """Return the reference's tissue that a profile of tissue `own` is compared with: that one, by name.

    A table without tissues, named by its file, is taken for the one whose words that name contains.
    """
    known = sorted(set(reference.obs["tissue"]))
    stem = slug(Path(table.source).stem)
    name = slug(asked) if asked else own or stem
    by_file = not asked and name == stem
    found = [t for t in known if t == name or (by_file and f"_{t}_" in f"_{name}_")]
    if not found and len(known) == 1 and not asked and not own:
        found = known  # the profiles' tissue is not stated, and there is nothing to choose from
    if len(found) != 1:
        raise InputError(
            f"{table.source}: tissue {name}: {reference.source} has {shorten(known)}; name the one to compare with by "
            "--reference_tissue"
        )
    return found[0]


def _refuse_few(table: ExpressionTable, reference: ExpressionTable, method: str, tissue: str, n: int, m: int) -> None:
    if m < LEAST_REFERENCE:
        raise InputError(
            f"{reference.source}: {m} training profiles of {tissue}, at least {LEAST_REFERENCE} were expected; name a "
            "larger --reference"
        )
    if method == "reference" and n < LEAST_PROFILES:
        raise InputError(
            f"{table.source}: {n} profiles of {tissue}; --harmonise reference needs at least {LEAST_PROFILES} to know "
            "a gene's mean and spread on that platform; use --harmonise quantile"
        )
