"""Files about genes: the list of genes to keep, and the names by which genes go."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError, did_you_mean, shorten
from datasets.genes import PREFIX, gene_key, is_ensembl, twins
from datasets.text import guess_delimiter, open_text, split_line

GENE_COLUMNS = ("Gene", "gene", "gene_id", "Ensembl", "ensembl_id", "ENSEMBL")
# Headers of columns with a gene's other names, as HGNC, BioMart and NCBI write them; HGNC's prev_name is a sentence.
_OTHER_NAMES = re.compile(r"(alias|prev|previous|synonym|gene[ _]?synonym)[ _]*(symbol)?(e?s)?", re.IGNORECASE)
_ENTREZ = re.compile(r".*(entrez|ncbi).*", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*[|,;]\s*")  # between the names of one field
_ATTRIBUTE = re.compile(r'(gene_id|gene_name|gene_type|gene_biotype) "([^"]*)"')
_GFF3 = re.compile(r"\w+=")  # how its last column begins: ID=gene:ENSG...
Ids = dict[str, list[str]]  # a name -> the Ensembl ids that it may mean


@dataclass
class GeneNames:
    """What genes are called besides their Ensembl ids. A name may mean several genes."""

    symbols: Ids = field(default_factory=dict)
    aliases: Ids = field(default_factory=dict)  # earlier symbols and synonyms; none of them is a gene's symbol
    entrez: Ids = field(default_factory=dict)  # NCBI's numbers

    def __bool__(self) -> bool:
        return bool(self.symbols)

    def find(self, name: str) -> tuple[str, list[str]]:
        """Return ("symbol", "alias" or "entrez", its Ensembl ids); ("", []) for a name that is not known."""
        for kind, ids in (("symbol", self.symbols), ("alias", self.aliases), ("entrez", self.entrez)):
            if name in ids:
                return kind, ids[name]
        return "", []


@dataclass
class GeneList:
    """Genes in their order, and which names they go by where the file says so."""

    genes: list[str]  # Ensembl ids with version where known, without `rna_`
    names: GeneNames = field(default_factory=GeneNames)


def read_gene_list(path: str | Path, biotype: str | None = None) -> GeneList:
    """Read the genes to keep: the reference's list (column `Gene`, values rna_ENSG....v), one id a line, or a GTF.

    `biotype` (protein_coding) chooses among the genes of a GENCODE or Ensembl GTF, which may be gzipped.
    """
    if is_gtf(path):
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


def read_mapping(path: str | Path) -> GeneNames:
    """Read names of genes from a GTF, or from a table with a column of Ensembl ids and one of symbols.

    Those two columns are found by their content and headers. Columns of aliases, previous symbols or synonyms (several
    in a field: "A | B") and of Entrez ids are taken along, as in HGNC's complete set and BioMart's tables.
    """
    if is_gtf(path):
        return _read_gtf(path, None).names
    with open_text(path) as file:
        delimiter = guess_delimiter(first := file.readline())
        rows = [split_line(first, delimiter), *csv.reader(file, delimiter=delimiter)]
    width = len(rows[0])
    header, *rows = [[f.strip() for f in row] for row in rows if len(row) == width]
    rows = [header, *rows] if any(map(is_ensembl, header)) else rows
    ids = [i for i in range(width) if sum(is_ensembl(row[i]) for row in rows) > 0.5 * len(rows)]
    numbers = [i for i in range(width) if all(row[i].isdigit() or not row[i] for row in rows)]
    others = [i for i in range(width) if _OTHER_NAMES.fullmatch(header[i])]
    named = [i for i in range(width) if i not in {*ids, *numbers, *others}]
    for word in ("name", "symbol"):  # the last word counts most
        named.sort(key=lambda i, word=word: word not in header[i].lower())
    if not ids or not named:
        raise InputError(
            f"{path}: a column of Ensembl gene ids and one of symbols were expected (found {shorten(header, 4)})"
        )
    names = GeneNames()
    for row in rows:
        if is_ensembl(gene := row[ids[0]].removeprefix(PREFIX)):
            _add(names.symbols, row[named[0]], gene)
            for i in numbers:
                if _ENTREZ.fullmatch(header[i]):
                    _add(names.entrez, row[i], gene)
            for i in others:
                for alias in _SEPARATOR.split(row[i]):
                    _add(names.aliases, alias, gene)
    names.aliases = {alias: genes for alias, genes in names.aliases.items() if alias not in names.symbols}
    return names


def is_gtf(path: str | Path) -> bool:
    """Return True for a GTF, by its first line that is no comment. InputError for a GFF3."""
    with open_text(path) as file:
        number, line = next(((n, line) for n, line in enumerate(file, start=1) if not line.startswith("#")), (0, ""))
    fields = line.split("\t")
    if len(fields) != 9 or not (fields[3].isdigit() and fields[4].isdigit()):
        return False
    if _GFF3.match(fields[8]):
        raise InputError(f"{path}: line {number} is GFF3 (ID=...), a GTF was expected; download the same release's GTF")
    return True


def gtf_lines(path: str | Path, feature: str) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Yield (line, the nine fields, attributes gene_id, gene_name, gene_type...) of a GTF's lines of one feature.

    InputError where such a line has no gene_id.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("#") or line.split("\t", 3)[2:3] != [feature]:
                continue
            fields = line.split("\t")
            facts = dict(_ATTRIBUTE.findall(fields[-1]))
            if not facts.get("gene_id"):
                article = "an" if feature[0] in "aeiou" else "a"
                raise InputError(
                    f'{path}: line {number} is {article} {feature} without gene_id "ENSG..."; mend it, or download the '
                    "GTF again"
                )
            yield number, fields, facts


def _read_gtf(path: str | Path, biotype: str | None) -> GeneList:
    found, types = GeneList([]), Counter()
    for _, _, facts in gtf_lines(path, "gene"):
        kind = facts.get("gene_type", facts.get("gene_biotype", ""))
        types[kind] += 1
        if biotype is None or kind == biotype:
            found.genes.append(facts["gene_id"])
            _add(found.names.symbols, facts.get("gene_name", ""), facts["gene_id"])
    if not found.genes:
        known = f" (it has {shorten([t for t, _ in types.most_common()], 5)})" if types else ""
        raise InputError(
            f"{path}: no gene of biotype {biotype or 'any'}{known}{did_you_mean(biotype or '', types)}; choose another"
        )
    if pairs := twins(found.genes):
        raise InputError(f"{path}: {pairs[0][0]} stands twice, each gene was expected once; download the GTF again")
    return found


def _add(ids_of: Ids, name: str, gene: str) -> None:
    """Add `gene` to the ids of `name`; nothing where the name is empty or the gene stands there in another version."""
    if name:
        ids = ids_of.setdefault(name, [])
        if gene_key(gene) not in map(gene_key, ids):
            ids.append(gene)
