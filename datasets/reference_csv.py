"""The reference's CSV: samples in rows, `wsi_file_name` and other words first, then `rna_<Ensembl id.version>` columns.

This module owns the format: it reads it, writes it, and keeps its binary cache (datasets/table_cache.py). Values are
linear; their unit is TPM unless a column `unit` says otherwise.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from common.errors import InputError, shorten
from common.files import atomic_path
from datasets.genes import PREFIX, is_ensembl, twins
from datasets.text import (
    REMEDY,
    decimal_sign,
    find_bad_field,
    guess_delimiter,
    open_bytes,
    open_text,
    refuse_web_page,
    split_line,
)

DECIMAL_LINES = 20  # below the header, looked at to tell a decimal comma
BLOCK_BYTES = 32 << 20  # of text parsed at once; a line of 19,198 genes has 120 kB (ours: fastest of 8, 32, 128 MiB)


def read_reference_csv(path: str | Path) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Return (values (samples, genes) float32, genes without `rna_`, the other columns as text).

    InputError names line and column of a duplicated column, a missing, infinite, negative or non-numeric value, a line
    of another length, or says that the file has no gene columns.
    """
    header, delimiter, decimal = _header(path)
    is_gene = [name.startswith(PREFIX) for name in header]
    if not any(is_gene):
        is_gene = [is_ensembl(name) for name in header]
    _check_header(path, header, is_gene)
    try:
        read = _read_lines if decimal == "." and is_gene == sorted(is_gene) else _read_columns
        values, words = read(path, header, is_gene, delimiter, decimal)
    except ValueError as error:  # pyarrow's errors are ValueErrors, and name no gene
        find_bad_field(path, header, np.flatnonzero(is_gene), delimiter, decimal)
        raise InputError(f"{path}: {str(error).splitlines()[0][:160]}; {REMEDY}") from None
    if not len(values):
        raise InputError(f"{path}: no line below the header; {REMEDY}")
    if not (values.min() >= 0 and values.max() < math.inf):  # False for NaN too
        find_bad_field(path, header, np.flatnonzero(is_gene), delimiter, decimal)
    genes = [name.removeprefix(PREFIX) for name, gene in zip(header, is_gene, strict=True) if gene]
    return values, genes, pd.DataFrame(words, dtype=object)


def write_reference_csv(path: str | Path, values: np.ndarray, genes: list[str], words: pd.DataFrame) -> None:
    """Write the words' columns first, then one `rna_` column per gene; numbers in their shortest exact form."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        head = ",".join([*map(_quoted, map(str, words.columns)), *(f"{PREFIX}{gene}" for gene in genes)])
        file.write(head.encode() + b"\n")
        for start in range(0, len(values), 256):
            part = np.ascontiguousarray(values[start : start + 256].T)
            rows = words.iloc[start : start + 256]
            columns = [pa.array(rows[name].astype(str).tolist(), pa.string()) for name in words.columns]
            columns += [pa.array(column) for column in part]
            table = pa.Table.from_arrays(columns, names=[str(i) for i in range(len(columns))])
            plain = not any(_quoted(field) != field for name in words for field in rows[name].astype(str))
            quoting = "none" if plain else "needed"  # which in pyarrow means every word
            pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=False, quoting_style=quoting))


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if any(c in field for c in ',"\n\r') else field


def _header(path: str | Path) -> tuple[list[str], str, str]:
    with open_text(path) as file:
        refuse_web_page(path, first := file.readline())
        delimiter = guess_delimiter(first)
        header = split_line(first, delimiter)
        lines = [] if delimiter == "," else itertools.islice(file, DECIMAL_LINES)
        rows = {number: split_line(line, delimiter) for number, line in enumerate(lines, start=2)}
    return header, delimiter, decimal_sign(path, header, rows, delimiter)


def _check_header(path: str | Path, header: list[str], is_gene: list[bool]) -> None:
    seen: dict[str, int] = {}
    for position, name in enumerate(header, start=1):
        if name in seen:
            raise InputError(
                f"{path}: columns {seen[name]} and {position} are both named {name!r}, each name was expected once; "
                "remove or rename one"
            )
        seen[name] = position
    genes = [name for name, gene in zip(header, is_gene, strict=True) if gene]
    if not genes:
        raise InputError(
            f"{path}: no gene columns like rna_ENSG00000186092.4 in the header (found {shorten(header, 3)}); "
            "convert a matrix of another form with `prepare_data.py expression --input`"
        )
    if pairs := twins(genes):
        first, second = pairs[0]
        raise InputError(
            f"{path}: columns {seen[first]} and {seen[second]}, {first} and {second}, are the same gene "
            "(genes match without version), each was expected once; remove one, or sum them with "
            "`prepare_data.py expression`"
        )


def _read_lines(
    path: str | Path, header: list[str], is_gene: list[bool], delimiter: str, decimal: str
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Read values (samples, genes) and words of a file whose genes come last, a block of lines at a time.

    The numbers of all lines are parsed as one long column. Cut into columns, as pyarrow does by itself, each column of
    each block is an object of its own, and rows of 60,000 genes took longer than their share, and ten times the memory.
    Where a field is quoted, that is done all the same.
    """
    n_words, mark = is_gene.count(False), delimiter.encode()
    parts, words = [], []
    with open_bytes(path) as file:
        file.readline()
        while block := file.read(BLOCK_BYTES):
            lines = [line for line in (block + file.readline()).splitlines() if line.strip()]
            if any(b'"' in line for line in lines):
                return _read_columns(path, header, is_gene, delimiter, decimal)
            if any(line.count(mark) != len(header) - 1 for line in lines):
                raise ValueError("a line of another length")
            fields = [line.split(mark, n_words) for line in lines]
            words += [[word.decode() for word in row[:n_words]] for row in fields]
            text = b"\n".join(row[n_words] for row in fields).replace(mark, b"\n")
            column = pyarrow.csv.read_csv(
                pa.BufferReader(text),
                pyarrow.csv.ReadOptions(column_names=["value"]),
                pyarrow.csv.ParseOptions(ignore_empty_lines=False),
                pyarrow.csv.ConvertOptions(column_types={"value": pa.float32()}),
            ).column(0)
            parts.append(column.to_numpy().reshape(len(fields), -1))
    values = np.concatenate(parts) if parts else np.empty((0, sum(is_gene)), np.float32)
    return values, {name: [row[i] for row in words] for i, name in enumerate(header[:n_words])}


def _read_columns(
    path: str | Path, header: list[str], is_gene: list[bool], delimiter: str, decimal: str
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Read values (samples, genes) and words of a file of any order of columns, quoted or not."""
    names = [str(i) for i in range(len(header))]
    types = {n: pa.float32() if gene else pa.string() for n, gene in zip(names, is_gene, strict=True)}
    with open_bytes(path) as file:
        table = pyarrow.csv.read_csv(
            file,
            pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, column_names=names, skip_rows=1),
            pyarrow.csv.ParseOptions(delimiter=delimiter),
            pyarrow.csv.ConvertOptions(column_types=types, decimal_point=decimal),
        )
    values, row = np.empty((table.num_rows, sum(is_gene)), np.float32), 0
    for batch in table.select(np.flatnonzero(is_gene).tolist()).to_batches():
        values[row : row + len(batch)] = batch.to_tensor(null_to_nan=True).to_numpy()
        row += len(batch)
    return values, {name: table.column(i).to_pylist() for i, name in enumerate(header) if not is_gene[i]}
