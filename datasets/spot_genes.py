"""The genes of sections of spatial transcriptomics: one column each in all sections, and which of them to keep."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from common.errors import InputError, warn
from datasets.gene_mapper import GeneMapper
from datasets.genes import gene_key
from datasets.sections import Section


def without_repeats(section: Section, mapper: GeneMapper) -> tuple[Section, dict[str, list[str]]]:
    """Return the section with the first column alone of each gene that has several, and gene key -> its columns' names.

    The others are copies: their molecules are counted already, so that no sum over the section's genes holds them.
    """
    repeats = mapper.repeats(section.genes)
    kept = np.ones(len(section.genes), bool)
    kept[[j for columns in repeats.values() for j in columns[1:]]] = False
    genes = [gene for gene, keep in zip(section.genes, kept, strict=True) if keep]
    names = {key: [section.genes[j] for j in columns] for key, columns in repeats.items()}
    return replace(section, counts=section.counts[:, np.flatnonzero(kept)], genes=genes), names


def map_genes(
    sections: Sequence[Section], kept: Sequence[pd.DataFrame], mapper: GeneMapper, duplicates: str | None = None
) -> tuple[sparse.csr_matrix, list[str], dict[str, str], dict[str, Any]]:
    """Return (counts (kept spots, genes that all sections have), Ensembl ids, their symbols, report).

    `kept` has a data frame per section whose index names the spots to keep, `<section>_<spot>`; `duplicates` is as in
    GeneMapper.collect; "first" needs sections `without_repeats`. InputError: no gene understood, none that all sections
    have, one that stands twice.
    """
    parts: list[dict[str, int]] = []  # per section: gene key -> column of `mapped`
    mapped, spelled, symbols = [], {}, {}
    sums: dict[str, set[str]] = {"summed": set(), "unmapped": set(), "ambiguous": set()}
    for section, obs in zip(sections, kept, strict=True):
        mapper.refuse_unmapped(section.source, [name for name in section.genes if mapper.wants(name)])
        _, ids, about = mapper.collect(section.source, np.empty((0, len(section.genes))), section.genes, duplicates)
        column_of = {gene_key(gene): column for column, gene in enumerate(ids)}
        sources = mapper.sources(section.genes)[0]  # gene key -> its columns in the section
        pairs = [(j, column) for key, column in column_of.items() for j in sources[key]]
        where = tuple(np.array(pairs, np.int64).reshape(-1, 2).T)
        which = sparse.csr_matrix((np.ones(len(pairs), np.float32), where), shape=(len(section.genes), len(ids)))
        row_of = {f"{section.name}_{spot}": row for row, spot in enumerate(section.counted)}
        mapped.append(section.counts[[row_of[name] for name in obs.index]] @ which)
        parts.append(column_of)
        for gene in ids:
            spelled.setdefault(gene_key(gene), gene)
        symbols = mapper.symbols_of(section.genes, section.symbols) | symbols
        for what, found in sums.items():
            found.update(about[what])
    common = [key for key in parts[0] if all(key in columns for columns in parts[1:])]
    if not common:
        raise InputError(f"{sections[-1].source}: no gene in common with {sections[0].source}; name genes alike")
    counts = sparse.vstack([m.tocsc()[:, [c[k] for k in common]] for m, c in zip(mapped, parts, strict=True)]).tocsr()
    report = {
        "in_files": {section.name: len(section.genes) for section in sections},
        "mapped": len(spelled),
        "not_in_all_sections": len(spelled) - len(common),
        "wanted": len(mapper.name_of) if mapper.name_of is not None else None,
        "missing": sorted(set(mapper.name_of) - set(spelled)) if mapper.name_of is not None else [],
    } | {what: sorted(found) for what, found in sums.items()}
    return counts, [spelled[key] for key in common], symbols, report


def choose_genes(
    counts: sparse.csr_matrix, cpm: sparse.csr_matrix, train: np.ndarray, min_spots: float, top_genes: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return (the columns to keep, in their order, what was left out for the report), by the training spots alone.

    counts, cpm: (spots, genes); train: (spots,) bool. Kept are genes with counts in at least `min_spots` (share) of the
    training spots, of those the `top_genes` (0: all) with the highest variance of log1p CPM. InputError: no such gene.
    """
    chosen = np.arange(counts.shape[1])
    if not min_spots and not top_genes:
        return chosen, {"training_spots": int(train.sum()), "seen_in_too_few": 0, "varying_less": 0}
    if not train.any():
        raise InputError(
            "no training spot to choose genes by: all sections are held out; keep some with --test SECTION, change "
            "--split_seed, or take all genes with --min_spots 0 --top_genes 0"
        )
    share = np.asarray((counts[train] > 0).mean(0)).ravel()
    enough = chosen[share >= min_spots]
    if not len(enough):
        raise InputError(f"--min_spots {min_spots}: no gene is seen in that share of training spots; lower it")
    kept = enough
    if top_genes and top_genes < len(enough):
        logged = cpm[train][:, enough].log1p()
        mean = np.asarray(logged.mean(0)).ravel()
        variance = np.asarray(logged.power(2).mean(0)).ravel() - mean**2
        kept = np.sort(enough[np.argsort(-variance, kind="stable")[:top_genes]])
    elif top_genes > len(enough):
        warn(f"--top_genes {top_genes}: only {len(enough)} genes are seen often enough; all of them are kept")
    return kept, {
        "training_spots": int(train.sum()),
        "seen_in_too_few": len(chosen) - len(enough),
        "varying_less": len(enough) - len(kept),
    }
