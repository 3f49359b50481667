"""Files about genes: the list of genes to keep, and the mapping of symbols to Ensembl ids."""

import csv
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError, did_you_mean, shorten
from datasets.genes import PREFIX, gene_key, is_ensembl, twins
from datasets.text import guess_delimiter, open_text, split_line

GENE_COLUMNS = ("Gene", "gene", "gene_id", "Ensembl", "ensembl_id", "ENSEMBL")
_ATTRIBUTE = re.compile(r'(gene_id|gene_name|gene_type|gene_biotype) "([^"]*)"')
_GFF3 = re.compile(r"\w+=")  # how its last column begins: ID=gene:ENSG...


@dataclass
class GeneList:
    """Genes in their order, and which symbols name them where the file says so."""

    genes: list[str]  # Ensembl ids with version where known, without `rna_`
    symbols: dict[str, list[str]] = field(default_factory=dict)  # symbol -> Ensembl ids


def read_gene_list(path: str | Path, biotype: str | None = None) -> GeneList:
    """Read the genes to keep: the reference's list (column `Gene`, values rna_ENSG....v), one id a line, or a GTF.

    `biotype` (protein_coding) chooses among the genes of a GENCODE or Ensembl GTF, which may be gzipped.
    """
    if _is_gtf(path):
        return _read_gtf(path, biotype)
    if biotype:
        raise InputError(f"{path}: --biotype {biotype} needs a GTF, this is a list of genes; leave --biotype out")
    with open_text(path) as file:
        header = split_line(file.readline(), ",")
        column = next((header.index(name) for name in GENE_COLUMNS if name in header), None)
        rows = [row for row in csv.reader(file) if row]
    if column is None and is_ensembl(header[0] if header else ""):
        column, rows = 0, [header, *rows]
    if column is None:
        raise InputError(
            f"{path}: no column Gene (found {shorten(header, 3)}); a CSV with a column Gene of ids like "
            "rna_ENSG00000186092.4 was expected, one id a line, or a GTF"
        )
    genes = []
    for line, row in enumerate(rows, start=1 if rows and rows[0] is header else 2):
        gene = row[column].strip() if len(row) > column else ""
        if not is_ensembl(gene):
            raise InputError(
                f"{path}: line {line}: {gene!r} is not an Ensembl gene id; ids like rna_ENSG00000186092.4 were expected"
            )
        genes.append(gene.removeprefix(PREFIX))
    if pairs := twins(genes):
        raise InputError(f"{path}: {pairs[0][0]} and {pairs[0][1]} are the same gene, expected once; remove one")
    if not genes:
        raise InputError(f"{path}: the list of genes is empty; at least one gene was expected")
    return GeneList(genes)


def read_mapping(path: str | Path) -> dict[str, list[str]]:
    """Read symbol -> Ensembl ids from a table with a column of each (found by their content), or from a GTF."""
    if _is_gtf(path):
        return _read_gtf(path, None).symbols
    with open_text(path) as file:
        delimiter = guess_delimiter(first := file.readline())
        rows = [split_line(first, delimiter), *csv.reader(file, delimiter=delimiter)]
    width = len(rows[0])
    rows = [[f.strip() for f in row] for row in rows if len(row) == width]
    ids = [i for i in range(width) if sum(is_ensembl(row[i]) for row in rows) > 0.5 * len(rows)]
    others = [i for i in range(width) if i not in ids and not all(row[i].isdigit() for row in rows[1:])]
    for word in ("name", "symbol"):  # the last word counts most
        others.sort(key=lambda i, word=word: word not in rows[0][i].lower())
    if not ids or not others:
        raise InputError(
            f"{path}: a column of Ensembl gene ids and one of symbols were expected (found {shorten(rows[0], 4)})"
        )
    symbols: dict[str, list[str]] = {}
    for row in rows:
        if is_ensembl(row[ids[0]]) and row[others[0]]:
            _add(symbols, row[others[0]], row[ids[0]])
    return symbols


def _is_gtf(path: str | Path) -> bool:
    with open_text(path) as file:
        number, line = next(((n, line) for n, line in enumerate(file, start=1) if not line.startswith("#")), (0, ""))
    fields = line.split("\t")
    if len(fields) != 9 or not (fields[3].isdigit() and fields[4].isdigit()):
        return False
    if _GFF3.match(fields[8]):
        raise InputError(f"{path}: line {number} is GFF3 (ID=...), a GTF was expected; download the same release's GTF")
    return True


def _read_gtf(path: str | Path, biotype: str | None) -> GeneList:
    found, types = GeneList([]), Counter()
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("#") or line.split("\t", 3)[2:3] != ["gene"]:
                continue
            facts = dict(_ATTRIBUTE.findall(line))
            if not facts.get("gene_id"):
                raise InputError(
                    f'{path}: line {number} is a gene without gene_id "ENSG..."; mend it, or download the GTF again'
                )
            kind = facts.get("gene_type", facts.get("gene_biotype", ""))
            types[kind] += 1
            if biotype is None or kind == biotype:
                found.genes.append(facts["gene_id"])
                if facts.get("gene_name"):
                    _add(found.symbols, facts["gene_name"], facts["gene_id"])
    if not found.genes:
        known = f" (it has {shorten([t for t, _ in types.most_common()], 5)})" if types else ""
        raise InputError(
            f"{path}: no gene of biotype {biotype or 'any'}{known}{did_you_mean(biotype or '', types)}; choose another"
        )
    if pairs := twins(found.genes):
        raise InputError(f"{path}: {pairs[0][0]} stands twice, each gene was expected once; download the GTF again")
    return found


def _add(symbols: dict[str, list[str]], symbol: str, gene: str) -> None:
    ids = symbols.setdefault(symbol, [])
    if gene_key(gene) not in map(gene_key, ids):
        ids.append(gene)
