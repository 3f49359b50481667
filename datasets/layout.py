"""How a foreign matrix is laid out: its delimiter, its header, which columns are words, whether genes run in rows."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from common.errors import InputError, shorten
from datasets.genes import is_ensembl, renamed_from
from datasets.text import MISSING, decimal_sign, guess_delimiter, is_number, open_text, refuse_web_page, split_line

PEEK_LINES = 50
# Columns beside the values that annotate genes, as GTEx, featureCounts, recount and TCGA name them, or samples.
# The bare GC is not among them: it is a gene too.
ANNOTATION = re.compile(
    r"(description|(gene|hgnc|hugo|ensembl)?[ _.]?(symbol|name|id|type|biotype)|geneid|biotype|entrez.*|chr|chrom|"
    r"chromosome|start|end|strand|(gene|exon|transcript)?[_ .]?length|width|locus|class|tracking_id|"
    r"transcript_ids?(\(s\))?|gc[_ .%]?(content|percent.*|pct|fraction)|gc%|(percentage|percent|pct)[_ .]?gc.*|"
    r"age([_ .](years|at[_ .].*))?|rin|smrin|batch|sex|gender|bmi)",
    re.IGNORECASE,
)
SAMPLE_FORM = re.compile(r"(rna_)?(GTEX-|TCGA-|GSM\d|[SED]RR\d)", re.IGNORECASE)
GENE_HEADS = {
    "gene",
    "genes",
    "gene_id",
    "geneid",
    "gene_symbol",
    "symbol",
    "hugo_symbol",
    "ensembl_gene_id",
    "gene_name",
}
SAMPLE_HEADS = {"sample", "samples", "sampid", "sample_id", "wsi_file_name", "barcode", "patient", "run"}
COMMON_SYMBOLS = {"ACTB", "GAPDH", "B2M", "TP53", "MYC", "EGFR", "VIM", "CD44", "RPLP0", "PPIA", "ISG15", "SDHB"}


@dataclass
class Layout:
    """Where things stand in a matrix. Columns are numbered from 0."""

    form: str  # "GCT", "delimited" or "parquet"
    names: list[str]  # of the columns
    words: list[int]  # columns of text: the first of them names the rows
    data: list[int]  # columns of values
    id_column: int  # the column that names the rows
    genes_in: str  # "rows" or "columns"
    delimiter: str = ","
    decimal: str = "."
    skip: int = 0  # lines before the header
    headless: bool = False  # the header has no field for the row names, as R writes it
    notes: list[int] = field(default_factory=list)  # columns of numbers that annotate; among the words in the end


def peek_text(path: str | Path) -> tuple[Layout, list[list[str]]]:
    """Return the layout of a text file, columns and orientation still open, and the fields of its first lines."""
    form, skip, lines, numbers = "delimited", 0, [], []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not lines and form == "delimited" and line.startswith("#1."):
                if line.strip() != "#1.2":
                    raise InputError(
                        f"{path}: a GCT file of version {line.strip()[1:]}; version 1.2 is read, convert it"
                    )
                form, skip = "GCT", 2
                file.readline()  # the numbers of rows and columns, which are often wrong: never used
            elif not lines and (line[:1] in "#!" or not line.strip()):
                skip += 1
            elif line.strip():
                lines.append(line)
                numbers.append(number + (form == "GCT"))
            if len(lines) > PEEK_LINES:
                break
    if len(lines) < 2:
        raise InputError(f"{path}: a header and at least one line of values were expected, found {len(lines)} line(s)")
    refuse_web_page(path, lines[0])
    delimiter = "\t" if form == "GCT" else guess_delimiter(lines[0])
    names, *rows = [split_line(line, delimiter) for line in lines]
    headless = len(rows[0]) == len(names) + 1
    names = ["", *names] if headless else names
    if len(names) < 2:
        raise InputError(f"{path}: one column only; fields set apart by comma, tab or semicolon were expected")
    decimal = decimal_sign(path, names, dict(zip(numbers[1:], rows, strict=True)), delimiter)
    layout = Layout(form, names, [], [], 0, "", delimiter, decimal, skip, headless)
    return layout, [row for row in rows if not row[0].startswith("!")]


def find_words(layout: Layout, rows: list[list[str]]) -> None:
    """Decide which columns are text: the first, and those with no number in the first lines; which are annotation."""

    def is_text(i: int) -> bool:
        fields = [row[i].replace(",", ".") if layout.decimal == "," else row[i] for row in rows if i < len(row)]
        fields = [f for f in fields if f.lower() not in MISSING]
        return bool(fields) and not any(map(is_number, fields))

    first_is_value = layout.names[0].startswith("rna_") or (is_ensembl(layout.names[0]) and not is_text(0))
    layout.words = [i for i, name in enumerate(layout.names) if (i == 0 and not first_is_value) or is_text(i)]
    words = set(layout.words)
    layout.data = [i for i in range(len(layout.names)) if i not in words]
    set_notes_apart(layout)


def set_notes_apart(layout: Layout) -> None:
    """Take columns of numbers whose names say that they annotate (length, age) from the values to `layout.notes`."""
    layout.notes = [i for i in layout.data if ANNOTATION.fullmatch(layout.names[i])]
    layout.data = [i for i in layout.data if i not in set(layout.notes)]


def find_orientation(
    path: str | Path,
    layout: Layout,
    rows: list[list[str]],
    given: str | None,
    symbols: Collection[str],
    all_ids: Callable[[], Iterable[str]],
    genes_alone: bool = False,
) -> str:
    """Set where genes run, which column names the rows, and which columns are values; return how that was found.

    `symbols` are those of a mapping; `all_ids` reads the names of all rows, and is called only where the first lines
    leave it open; `genes_alone` as in read_matrix. InputError where nothing tells.
    """
    heads = [layout.names[i] for i in layout.data]
    column = max(layout.words, key=lambda i: _share(is_ensembl, [row[i] for row in rows]), default=0)
    ids = [row[column] for row in rows] if layout.words else []
    layout.id_column = column if _share(is_ensembl, ids) > 0.5 else (layout.words or [0])[0]
    if given:
        layout.genes_in, why = given, "given with --orientation"
    else:
        layout.genes_in, why = _orientation(path, layout, heads, ids, symbols, all_ids)
    if layout.genes_in == "columns":
        layout.id_column = (layout.words or [-1])[0]
        if not genes_alone and any(map(is_ensembl, heads)):  # numbers in columns of other names describe the samples
            known, present = set(symbols), set(heads)
            genes = {i for i in layout.data if _is_gene(layout.names[i], known, present)}
            layout.words = sorted({*layout.words, *layout.data} - genes)
            layout.data = [i for i in layout.data if i in genes]
    elif layout.genes_in == "rows":
        layout.notes += [i for i in layout.data if layout.names[i].upper() == "GC"]
        layout.data = [i for i in layout.data if layout.names[i].upper() != "GC"]
    layout.words = sorted({*layout.words, *layout.notes})
    if not layout.data:
        raise InputError(f"{path}: no column of numbers (found {shorten(layout.names, 4)}); a matrix was expected")
    return why


def _orientation(
    path: str | Path,
    layout: Layout,
    heads: list[str],
    ids: list[str],
    symbols: Collection[str],
    all_ids: Callable[[], Iterable[str]],
) -> tuple[str, str]:
    if layout.form == "GCT":
        return "rows", "GCT files have genes in rows"
    for test, what in ((is_ensembl, "Ensembl ids"), (set(symbols).__contains__, "symbols of the mapping")):
        across, down = _share(test, heads), _share(test, ids)
        if min(across, down) >= 0.5:
            _ask(path, heads, ids)
        if max(across, down) >= 0.5:
            return ("columns", f"{what} in the header") if across > down else ("rows", f"{what} in the first column")
    if _share(SAMPLE_FORM.match, heads) >= 0.5:
        return "rows", "sample ids in the header"
    if _share(SAMPLE_FORM.match, ids) >= 0.5:
        return "columns", "sample ids in the first column"
    head = layout.names[0].lower()
    if head in GENE_HEADS or head in SAMPLE_HEADS:
        return ("rows" if head in GENE_HEADS else "columns"), f"the first column is named {layout.names[0]}"
    known_across = len(COMMON_SYMBOLS.intersection(heads))
    names = list(all_ids())
    known_down = len(COMMON_SYMBOLS.intersection(names))
    if max(known_across, known_down) >= 3 and known_across != known_down:
        return (
            ("columns", "gene symbols in the header") if known_across > known_down else ("rows", "gene symbols in rows")
        )
    if len(names) >= 3 * len(heads) and len(names) >= 1000:
        return "rows", f"{len(names)} rows and {len(heads)} columns of values: the longer side taken as genes"
    if len(heads) >= 3 * len(names) and len(heads) >= 1000:
        return "columns", f"{len(names)} rows and {len(heads)} columns of values: the longer side taken as genes"
    _ask(path, heads, ids)


def _ask(path: str | Path, heads: list[str], ids: list[str]) -> NoReturn:
    raise InputError(
        f"{path}: cannot tell whether genes run in rows (such as {shorten(ids, 2)}) or in columns (such as "
        f"{shorten(heads, 2)}); state it with --orientation genes_in_rows or genes_in_columns"
    )


def _is_gene(name: str, known: set[str], present: set[str]) -> bool:
    return is_ensembl(name) or name in known or is_ensembl(renamed_from(name, present) or "")


def _share(test: Callable[[str], object], names: list[str]) -> float:
    return sum(bool(test(name)) for name in names) / len(names) if names else 0.0
