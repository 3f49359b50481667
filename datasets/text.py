"""Delimited text as the world writes it: gzip or not, with a byte-order mark or not, comma, tab or semicolon."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError

DELIMITERS = "\t;,"  # in this order where two are equally frequent: a comma may be the decimal sign
csv.field_size_limit(1 << 24)


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, gunzipped where its content says so. InputError: missing, empty, cut off."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, a table' if path.is_dir() else 'no such file; a table'} was expected")
    with open(path, "rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if not magic:
            raise InputError(f"{path}: the file is empty; download or make it again")
        try:
            with gzip.open(raw) if magic == b"\x1f\x8b" else raw as file:
                yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: the gzip file is cut off or damaged ({error}); download it again") from None


@contextmanager
def open_text(path: str | Path) -> Iterator[io.TextIOWrapper]:
    """Open a text file, gunzipped and without byte-order mark. InputError where it is not UTF-8 text."""
    with open_bytes(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8 text") from None


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of one line, quotes removed."""
    return [f.strip() for f in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])]


def guess_delimiter(line: str) -> str:
    """Return the delimiter of a header line: the most frequent of tab, semicolon and comma."""
    return max(DELIMITERS, key=lambda d: len(split_line(line, d)))


def decimal_sign(lines: list[str], delimiter: str) -> str:
    """Return "," where the delimiter is not a comma and fields of `lines` look like 1,5; else "."."""
    if delimiter == ",":
        return "."
    fields = [f for line in lines for f in split_line(line, delimiter)]
    return "," if any(is_number(f.replace(",", ".", 1)) and "," in f for f in fields) else "."


def is_number(field: str) -> bool:
    """Return True where the field is a number as tables write it (NaN and inf included, 1_000 not)."""
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field
