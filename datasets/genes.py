"""Gene identifiers: what is an Ensembl gene id, and which names mean the same gene."""

import functools
import re
from collections.abc import Iterable

PREFIX = "rna_"  # of gene columns in the reference's CSV, nowhere else
_ENSEMBL = re.compile(r"(ENS[A-Z]*G)(R?)(\d{8,11})(?:\.\d+)?(_PAR_Y)?$")


@functools.cache
def gene_key(name: str) -> str:
    """Return what makes a gene the same gene: the Ensembl id without version, `_PAR_Y` kept; any other name as it is.

    "rna_ENSG00000186092.4" -> "ENSG00000186092"; "ENSG00000002586.18_PAR_Y", and "ENSGR0000002586.11" as GENCODE wrote
    it before release 25, -> "ENSG00000002586_PAR_Y".
    """
    name = name.removeprefix(PREFIX)
    if not (match := _ENSEMBL.match(name)):
        return name
    stem, old_par, digits, par = match.groups()
    return f"{stem}{digits.zfill(11)}{'_PAR_Y' if par or old_par else ''}"


def is_ensembl(name: str) -> bool:
    """Return True for an Ensembl gene id, with or without `rna_`, version and `_PAR_Y`."""
    return _ENSEMBL.match(name.removeprefix(PREFIX)) is not None


def twins(genes: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that mean the same gene, in order of appearance."""
    first: dict[str, str] = {}
    pairs = []
    for gene in genes:
        key = gene_key(gene)
        if key in first:
            pairs.append((first[key], gene))
        else:
            first[key] = gene
    return pairs
