"""Foreign expression matrices, read part by part: GTEx GCT, GEO and other delimited text, parquet, h5ad.

Only the wanted samples and genes are kept, so that one tissue of the 56,200 x 17,382 GTEx matrix fits in memory; the
statistics that tell the unit are gathered over all genes on the way.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from common.errors import InputError
from common.memory import free_memory
from datasets.layout import PEEK_LINES, Layout, find_orientation, find_words, peek_text, set_notes_apart
from datasets.reference_csv import BLOCK_BYTES
from datasets.text import bad_value, find_bad_field, open_bytes
from datasets.units import ValueStats

REMEDY = "mend the file, or leave out genes that lack a value with --missing drop"
SYMBOL_HEADS = ("description", "symbol", "gene_symbol", "gene symbol", "hugo_symbol", "hgnc_symbol", "gene_name")
Predicate = Callable[[str], bool]


@dataclass
class Matrix:
    """A matrix as it stands in its file: unit, log and identifiers untouched; every value finite."""

    values: np.ndarray  # (samples, genes) float32: the wanted ones
    samples: list[str]
    genes: list[str]  # as named in the file; may repeat
    words: pd.DataFrame  # (samples, ...) text columns about the samples
    stats: ValueStats  # over all genes of the file that lack no value, for the wanted samples
    facts: dict[str, Any] = field(default_factory=dict)  # what was found, for the report
    symbols: dict[str, str] = field(default_factory=dict)  # gene as named -> symbol, where a column tells
    find_negative: Callable[[str], None] = lambda remedy: None  # raises the InputError that names the first such value


def read_matrix(
    path: str | Path,
    orientation: str | None = None,
    symbols: Collection[str] = (),
    wanted_gene: Predicate = lambda name: True,
    wanted_sample: Predicate = lambda name: True,
    missing: str = "refuse",
    genes_alone: bool = False,
) -> Matrix:
    """Read the wanted samples and genes of a matrix of any form. InputError names line and column of what is wrong.

    `orientation` is "rows" or "columns" (where the genes run), None to find out; `symbols` helps to. The predicates see
    names as they stand in the file. `missing` is "refuse", or "drop": genes, wanted or not, that lack a value of a
    wanted sample are left out, of the statistics too, and named. `genes_alone`: with genes in columns every column of
    numbers is a gene, whatever its name; else, beside Ensembl ids, other names are the samples' attributes.
    """
    path = Path(path)
    if path.suffix == ".h5ad":
        from datasets.anndata_matrix import read_anndata

        return read_anndata(path, orientation, wanted_gene, wanted_sample, missing == "drop")
    if path.suffix in (".parquet", ".pq"):
        layout, rows = _peek_parquet(path)
    else:
        layout, rows = peek_text(path)
        find_words(layout, rows)
    why = find_orientation(path, layout, rows, orientation, symbols, lambda: _all_ids(path, layout), genes_alone)
    if layout.genes_in == "rows" or layout.form == "parquet":  # parquet columns are read by name
        _refuse_doubled_columns(path, layout)
    read = _by_rows if layout.genes_in == "rows" else _by_columns
    matrix = read(path, layout, wanted_gene, wanted_sample, missing == "drop")
    in_table = [i for i in layout.data if layout.genes_in == "columns" or wanted_sample(layout.names[i])]
    matrix.find_negative = partial(_find_negative, path, layout, in_table, missing == "drop")
    matrix.facts |= {
        "format": layout.form,
        "orientation": f"genes in {layout.genes_in}",
        "orientation_found_by": why,
        "id_column": layout.names[layout.id_column] if layout.id_column >= 0 else None,
        "text_columns": [layout.names[i] for i in layout.words],
    }
    if layout.form != "parquet":
        matrix.facts |= {"delimiter": layout.delimiter, "decimal_sign": layout.decimal}
    return matrix


def _by_rows(path: Path, layout: Layout, wanted_gene: Predicate, wanted_sample: Predicate, drop: bool) -> Matrix:
    """Genes in rows: the wanted samples are columns, chosen before anything is converted."""
    columns = [i for i in layout.data if wanted_sample(layout.names[i])]
    samples = [layout.names[i] for i in columns]
    says = [i for i in layout.words if i != layout.id_column and layout.names[i].lower() in SYMBOL_HEADS][:1]
    stats, parts, genes, dropped, symbols, n_rows = ValueStats(len(samples)), [], [], [], {}, 0
    if columns:
        for names, part, said in _parts(path, layout, columns, says, drop):  # part: (genes, samples)
            n_rows += len(names)
            symbols |= {name: symbol for name, symbol in zip(names, *said, strict=True) if symbol} if said else {}
            if drop and (lacking := np.isnan(part).any(1)).any():
                dropped += [name for name, lacks in zip(names, lacking, strict=True) if lacks]
                names = [name for name, lacks in zip(names, lacking, strict=True) if not lacks]
                part = part[~lacking]
            stats.n_genes += len(names)
            stats.add(part.T)
            keep = [j for j, name in enumerate(names) if wanted_gene(name)]
            parts.append(part[keep])
            genes += [names[j] for j in keep]
    facts = {"samples_in_file": len(layout.data), "genes_in_file": n_rows, "genes_lacking_values": dropped}
    frame = pd.DataFrame(index=range(len(samples)))
    return Matrix(_turned(parts, len(samples)), samples, genes, frame, stats, facts, symbols)


def _turned(parts: list[np.ndarray], n_samples: int) -> np.ndarray:
    """Return parts, (genes, n_samples) each, as one (n_samples, all genes); each part is let go once it is copied."""
    values = np.empty((n_samples, sum(map(len, parts))), np.float32)
    parts.reverse()
    start = 0
    while parts:
        part = parts.pop()
        values[:, start : start + len(part)] = part.T
        start += len(part)
    return values


def _by_columns(path: Path, layout: Layout, wanted_gene: Predicate, wanted_sample: Predicate, drop: bool) -> Matrix:
    """Genes in columns: every gene of a wanted row is converted, for the statistics, and the wanted ones kept.

    Which genes lack a value is known at the last row: with `drop` the file is read once before.
    """
    lacking = np.zeros(len(layout.data), bool)
    for names, part, _ in _parts(path, layout, layout.data, [], True) if drop else ():
        lacking |= np.isnan(part[[row for row, name in enumerate(names) if wanted_sample(name)]]).any(0)
    whole = np.flatnonzero(~lacking)
    keep = [k for k, j in enumerate(whole) if wanted_gene(layout.names[layout.data[j]])]
    words = [i for i in layout.words if i != layout.id_column]
    stats, samples, parts, said, n_rows = ValueStats(0), [], [], [], 0
    for names, part, texts in _parts(path, layout, layout.data, words, drop):
        here = [row for row, name in enumerate(names) if wanted_sample(name)]
        chosen = part[np.ix_(here, whole)] if drop else part[here]  # (samples, genes)
        stats.more_samples(len(here))
        stats.add(chosen, slice(len(samples), None))
        parts.append(chosen[:, keep])
        samples += [names[row] for row in here]
        said += [[column[row] for column in texts] for row in here]
        n_rows += len(names)
    stats.n_genes = len(whole)
    values = np.concatenate(parts) if parts else np.empty((0, len(keep)), np.float32)
    frame = pd.DataFrame(said, columns=[layout.names[i] for i in words], dtype=object)
    genes = [layout.names[layout.data[j]] for j in whole[keep]]
    dropped = [layout.names[layout.data[j]] for j in np.flatnonzero(lacking)]
    facts = {"samples_in_file": n_rows, "genes_in_file": len(layout.data), "genes_lacking_values": dropped}
    return Matrix(values, samples, genes, frame, stats, facts)


def _parts(
    path: Path, layout: Layout, columns: list[int], words: list[int], missing_allowed: bool
) -> Iterator[tuple[list[str], np.ndarray, list[list[str]]]]:
    """Yield (row names, values (rows, len(columns)) float32, text columns) of one part of the file after another."""
    wanted = [*([layout.id_column] if layout.id_column >= 0 else []), *words]
    numbered = 0
    for batch in _batches(path, layout, columns, wanted):
        values = batch.select(range(len(columns))).to_tensor(null_to_nan=True).to_numpy()
        part = np.asarray(values, np.float32)
        texts = [[str(text or "").strip() for text in column.to_pylist()] for column in batch.columns[len(columns) :]]
        names = (
            texts.pop(0)
            if layout.id_column >= 0
            else [f"{path.name.split('.')[0]}_{numbered + i}" for i in range(batch.num_rows)]
        )
        numbered += batch.num_rows
        bad = np.isinf(part) if missing_allowed else ~np.isfinite(part)
        if bad.any():
            if layout.form != "parquet":
                _explain(path, layout, columns, missing_allowed)
            _refuse_first(path, layout, columns, names, part, bad, f"a finite number was expected; {REMEDY}")
        yield names, part, texts


def _refuse_first(
    path: Path, layout: Layout, columns: list[int], names: list[str], part: np.ndarray, bad: np.ndarray, expected: str
) -> NoReturn:
    """Raise the InputError of the first bad value of `part`, (rows, len(columns)), by its row and column."""
    row, column = np.argwhere(bad)[0]
    raise InputError(
        f"{path}: row {names[row]}, column {layout.names[columns[column]]}: {bad_value(str(part[row, column]))}, "
        f"{expected}"
    )


def _find_negative(path: Path, layout: Layout, columns: list[int], drop: bool, remedy: str) -> None:
    """Raise the InputError of the first negative value, by line (text) or row (parquet) and column."""
    if layout.form != "parquet":
        find_bad_field(
            path,
            layout.names,
            columns,
            layout.delimiter,
            layout.decimal,
            layout.skip,
            missing_allowed=drop,
            remedy=remedy,
        )
    for names, part, _ in _parts(path, layout, columns, [], drop):
        if (bad := part < 0).any():
            expected = f"a finite number of at least 0 was expected; {remedy}"
            _refuse_first(path, layout, columns, names, part, bad, expected)


def _batches(path: Path, layout: Layout, columns: list[int], words: list[int]) -> Iterator[pa.RecordBatch]:
    """Yield the file's chosen columns in batches of rows: first `columns`, float32 or as in parquet, then `words`."""
    if layout.form == "parquet":
        names = [layout.names[i] for i in (*columns, *words)]
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024, columns=names):
            yield batch.select(names)
        return
    bad_lines: list[pyarrow.csv.InvalidRow] = []

    def on_bad_line(line: pyarrow.csv.InvalidRow) -> str:
        if line.text.startswith("!"):  # the last line of a GEO series matrix
            return "skip"
        bad_lines.append(line)
        return "error"

    types = {str(i): pa.float32() for i in columns} | {str(i): pa.string() for i in words}
    with open_bytes(path) as file:
        try:
            yield from pyarrow.csv.open_csv(
                file,
                pyarrow.csv.ReadOptions(
                    block_size=BLOCK_BYTES,
                    column_names=[str(i) for i in range(len(layout.names))],
                    skip_rows=layout.skip + 1,
                ),
                pyarrow.csv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=on_bad_line),
                pyarrow.csv.ConvertOptions(
                    column_types=types, include_columns=list(types), decimal_point=layout.decimal
                ),
            )
        except pa.ArrowInvalid as error:
            _explain(path, layout, columns, missing_allowed=True)
            raise InputError(f"{path}: {str(error).splitlines()[0][:160]}; {REMEDY}") from None


def _explain(path: Path, layout: Layout, columns: list[int], missing_allowed: bool) -> None:
    facts = (layout.delimiter, layout.decimal, layout.skip)
    find_bad_field(path, layout.names, columns, *facts, lowest=-np.inf, missing_allowed=missing_allowed, remedy=REMEDY)


def _all_ids(path: Path, layout: Layout) -> list[str]:
    if layout.id_column < 0:
        return []
    batches = _batches(path, layout, [], [layout.id_column])
    return [str(name) for batch in batches for name in batch.column(0).to_pylist()]


def _peek_parquet(path: Path) -> tuple[Layout, list[list[str]]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; a table was expected")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0][:100]}); make it again"
        ) from None
    size = 4 * file.metadata.num_rows * file.metadata.num_columns
    if size > free_memory():  # a few bytes can stand for any number of equal values
        raise InputError(f"{path}: {size:,} bytes of numbers, more than this machine has free; make it smaller")
    kinds = [field.type for field in file.schema_arrow]
    layout = Layout("parquet", list(file.schema_arrow.names), [], [], 0, "")
    layout.data = [i for i, kind in enumerate(kinds) if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    layout.words = [i for i in range(len(kinds)) if i not in set(layout.data)]
    set_notes_apart(layout)
    layout.words.sort(key=lambda i: not layout.names[i].startswith("__index_level_"))
    first = next(file.iter_batches(batch_size=PEEK_LINES, columns=[layout.names[i] for i in layout.words]), None)
    if first is None or not first.num_rows:
        raise InputError(f"{path}: the table has no rows; a matrix was expected")
    texts = {layout.words[i]: first.column(layout.names[layout.words[i]]).to_pylist() for i in range(len(layout.words))}
    rows = [[str(texts[i][r]) if i in texts else "" for i in range(len(kinds))] for r in range(first.num_rows)]
    return layout, rows


def _refuse_doubled_columns(path: Path, layout: Layout) -> None:
    seen: dict[str, int] = {}
    what = "sample" if layout.genes_in == "rows" else "gene"
    for i in layout.data:
        name = layout.names[i]
        if name in seen:
            raise InputError(
                f"{path}: {what} {name} stands in columns {seen[name] + 1} and {i + 1}, each {what} was expected once; "
                "remove or rename one"
            )
        seen[name] = i
