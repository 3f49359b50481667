"""Lengths of genes, from a GTF or a table, and what they are for: counts to TPM."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, shorten
from datasets.gene_lists import gtf_lines, is_gtf
from datasets.genes import gene_key
from datasets.text import bad_value, guess_delimiter, open_text, split_line

LENGTH_COLUMNS = ("length", "gene_length", "exon_length", "bp_length", "length_bp")  # the first: featureCounts'
LEFT_OUT_AT_MOST = (
    0.01  # share of a sample's reads in genes without a length; beyond it the GTF is not the counts'; ours
)


@dataclass
class GeneLengths:
    """How long genes are, in bases, by Ensembl id without version and by whatever else the file calls them."""

    of: dict[str, float]
    source: str
    rule: str  # what the length of a gene is, for the report


def read_gene_lengths(path: str | Path) -> GeneLengths:
    """Read lengths from a GTF (bases in the union of a gene's exons), or from a table with a column Length.

    A table's first column names the genes, by Ensembl id or symbol; featureCounts' output is such a table. In a GTF of
    GTEx's collapsed gene model the union is the model's own length; in a full GTF it is what featureCounts divides by.
    InputError where lengths are missing, no numbers, or not above 0.
    """
    if is_gtf(path):
        return GeneLengths(_exon_unions(path), str(path), "bases in the union of the gene's exons")
    with open_text(path) as file:
        lines = (line for line in file if not line.startswith("#"))
        delimiter = guess_delimiter(first := next(lines, ""))
        header = split_line(first, delimiter)
        column = next((i for i, name in enumerate(header) if name.lower().replace(" ", "_") in LENGTH_COLUMNS), None)
        if not column:
            raise InputError(
                f"{path}: no column Length beside the genes' names (found {shorten(header, 4)}); a GTF, or a table "
                "whose first column names genes and one is called Length, was expected"
            )
        lengths: dict[str, float] = {}
        for row in filter(None, csv.reader(lines, delimiter=delimiter)):
            name = gene_key(row[0].strip())
            text = row[column].strip() if len(row) > column else ""
            if row and (problem := bad_value(text) or ("the length is 0" if float(text) == 0 else "")):
                raise InputError(
                    f"{path}: gene {row[0]}, column {header[column]}: {problem}; bases were expected; mend it"
                )
            if lengths.setdefault(name, float(text or 0)) != float(text or 0):
                raise InputError(f"{path}: gene {row[0]} stands twice with two lengths; one was expected; remove one")
    return GeneLengths(lengths, str(path), f"column {header[column]} of the table")


def counts_to_tpm(
    path: str | Path, counts: np.ndarray, names: Sequence[str], ids: Iterable[str | None], lengths: GeneLengths
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return (TPM (samples, genes), report): count / length, over its sum over all genes, x 10^6; Wagner et al. 2012.

    `counts` (samples, genes) are of all genes of the file, `names` as it names them, `ids` their Ensembl ids if known.
    A gene without a length is left out of the sums, its TPM is NaN. InputError where such genes hold more than
    LEFT_OUT_AT_MOST of a sample's reads, or a sample has no read in the others.
    """
    known = [lengths.of.get(gene_key(i or name), lengths.of.get(name)) for name, i in zip(names, ids, strict=True)]
    length = np.array([np.nan if bases is None else bases for bases in known])  # (genes,)
    lacks = np.isnan(length)
    total = counts.sum(1, dtype=np.float64)
    lost = counts[:, lacks].sum(1, dtype=np.float64) / np.maximum(total, 1)  # (samples,)
    without = [name for name, lacking in zip(names, lacks, strict=True) if lacking]
    if len(lost) and lost.max() > LEFT_OUT_AT_MOST:
        raise InputError(
            f"{lengths.source}: no length for {len(without)} of {len(names)} genes of {path} ({shorten(without, 3)}), "
            f"which hold up to {lost.max():.1%} of a sample's reads, at most {LEFT_OUT_AT_MOST:.0%} were expected; use "
            "the GTF that the reads were counted with"
        )
    rate = counts / (length / 1e3).astype(np.float32)  # reads per kilobase
    sums = np.nansum(rate, 1, dtype=np.float64)
    if not (sums > 0).all():
        raise InputError(f"{path}: a profile without a positive sum cannot be converted; remove it or --convert")
    rate *= (1e6 / sums)[:, None].astype(np.float32)
    return rate, {
        "gene_lengths": lengths.source,
        "length_is": lengths.rule,
        "genes_with_length": int((~lacks).sum()),
        "genes_without_length": without,
        "share_of_reads_without_length": float(lost.max()) if len(lost) else 0.0,
    }


def _exon_unions(path: str | Path) -> dict[str, float]:
    """Return gene -> bases in the union of its exons, by Ensembl id and, where one gene has it, by symbol."""
    exons: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    named: dict[str, set[str]] = defaultdict(set)
    for line, fields, facts in gtf_lines(path, "exon"):
        gene = gene_key(facts["gene_id"])
        if not (fields[3].isdigit() and fields[4].isdigit()):
            raise InputError(f"{path}: line {line}: an exon from {fields[3]!r} to {fields[4]!r}, bases were expected")
        exons[gene][fields[0]].append((int(fields[3]), int(fields[4])))
        named[facts.get("gene_name", gene)].add(gene)
    if not exons:
        raise InputError(f"{path}: no exon; a GTF with exons was expected; download the full GTF of the release")
    lengths = {gene: float(max(map(_union, places.values()))) for gene, places in exons.items()}  # X and Y: once
    for genes in named.values():  # a symbol of both means the gene on X
        genes -= {gene for gene in genes if gene.endswith("_PAR_Y") and gene.removesuffix("_PAR_Y") in genes}
    return {name: lengths[next(iter(genes))] for name, genes in named.items() if len(genes) == 1} | lengths


def _union(spans: list[tuple[int, int]]) -> int:
    """Return how many bases the spans (first, last), both within, cover."""
    covered = end = 0
    for first, last in sorted(spans):
        covered += max(0, last - max(first, end + 1) + 1)
        end = max(end, last)
    return covered
