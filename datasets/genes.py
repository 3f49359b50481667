"""Gene identifiers: what is an Ensembl gene id, and which names mean the same gene."""

import functools
import re
from collections.abc import Collection, Iterable

PREFIX = "rna_"  # of gene columns in the reference's CSV, nowhere else
_ENSEMBL = re.compile(r"(ENS[A-Z]*G)(R?)(\d{8,11})(?:\.\d+(?:_\d+)?)?(_PAR_Y)?$")  # .5_2: GENCODE's lift to GRCh37
# Rows of htseq-count and STAR that count the reads of no gene.
_TALLY = re.compile(r"__(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)|N_[a-z]+(Feature)?")

# What spreadsheets make of MARCH1, SEPT2 and DEC1: 1-Mar, Sep-02, 2026-03-01, 3/1/2026.
_DATE = re.compile(
    r"\d{1,2}-(mar|sep|sept|dec)|(mar|sep|sept|dec)-\d{1,2}|\d{4}-\d\d-\d\d.*|\d{1,2}/\d{1,2}/\d{2,4}", re.I
)


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


def is_tally(name: str) -> bool:
    """Return True for a row of a counting program that counts reads of no gene: __no_feature, N_unmapped."""
    return _TALLY.fullmatch(name) is not None


def is_date(name: str) -> bool:
    """Return True for a gene's name that a spreadsheet took for a date: 1-Mar, Sep-02, 2026-03-01."""
    return _DATE.fullmatch(name) is not None


def renamed_from(name: str, present: Collection[str]) -> str | None:
    """Return "X" for "X.2", None for any other: what pandas and R make of a second, third... column of the same name.

    `present` are the names beside it: only where X and X.1 are among them is X.2 taken for such a one.
    """
    stem, dot, number = name.rpartition(".")
    return stem if dot and number.isdigit() and stem in present and f"{stem}.1" in present else None


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
