"""Delimited text as the world writes it: gzip or not, with a byte-order mark or not, comma, tab or semicolon."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from common.errors import InputError

DELIMITERS = "\t;,"  # in this order where two are equally frequent: a comma may be the decimal sign
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none")
REMEDY = "mend the file, or make it again with `prepare_data.py expression`"
_GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?")  # 1,234: thousands set apart, or a decimal comma
csv.field_size_limit(1 << 24)
LONGEST_LINE = 1 << 28  # bytes; a table of 17,000 samples has lines of some hundred thousand


class _Gunzipped(gzip.GzipFile):
    """A gzip file whose lines have an end: a small one may hold a line of any length, which a reader would wait for."""

    _since_end = 0  # bytes since the last end of a line

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes."""
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, of one reading."""
        return self._checked(super().read1(size))

    def readline(self, size: int | None = -1) -> bytes:
        """Return the next line."""
        limited = LONGEST_LINE + 1 if size is None or size < 0 else size
        return self._checked(super().readline(limited))

    def _checked(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        self._since_end = len(data) - end if end else self._since_end + len(data)
        if self._since_end > LONGEST_LINE:
            raise gzip.BadGzipFile(f"a line of more than {LONGEST_LINE:,} bytes")
        return data


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, gunzipped where its content says so. InputError: missing, empty, cut off.

    A reading of more than three seconds shows a progress bar.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, a table' if path.is_dir() else 'no such file; a table'} was expected")
    with open(path, "rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if not magic:
            raise InputError(f"{path}: the file is empty; download or make it again")
        size = path.stat().st_size
        try:
            with tqdm.wrapattr(raw, "read", total=size, desc=path.name, delay=3, leave=False, disable=None) as seen:
                yield _Gunzipped(fileobj=seen) if magic == b"\x1f\x8b" else seen
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


def decimal_sign(path: str | Path, header: list[str], rows: dict[int, list[str]], delimiter: str) -> str:
    """Return "," where the delimiter is not a comma and fields of `rows` (line: fields) look like 1,5; else ".".

    InputError where every such field looks like 1,234: thousands set apart and a decimal comma cannot be told apart.
    """
    if delimiter == ",":
        return "."
    grouped: tuple[int, int] | None = None  # line and column of the first such field
    for line, fields in rows.items():
        for column, field in enumerate(fields):
            if "," not in field:
                continue
            if _GROUPED.fullmatch(field):
                grouped = grouped or (line, column)
            elif is_number(field.replace(",", ".", 1)):
                return ","
    if grouped is None:
        return "."
    line, column = grouped
    name = header[column] if column < len(header) else column + 1
    raise InputError(
        f"{path}: line {line}, column {name}: {rows[line][column]!r} may be thousands set apart or a decimal comma; "
        "write the table without thousands separators and with decimal points (1234.5)"
    )


def is_number(field: str) -> bool:
    """Return True where the field is a number as tables write it (NaN and inf included, 1_000 not)."""
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field


def refuse_web_page(path: str | Path, first_line: str) -> None:
    """Raise InputError where a download was answered with HTML or XML."""
    if first_line.lstrip()[:1] == "<":
        raise InputError(f"{path}: holds a web page, not a table; download it again")


def find_bad_field(
    path: str | Path,
    header: list[str],
    numeric: Iterable[int],
    delimiter: str,
    decimal: str,
    skip: int = 0,
    lowest: float = 0.0,
    missing_allowed: bool = False,
    remedy: str = REMEDY,
) -> None:
    """Raise the InputError of the first line of other length or with a field of `numeric` that is no number >= lowest.

    Slow, and only used after a fast reader failed; returns where it finds nothing wrong. `skip`: lines before the
    header.
    """
    numeric = [int(i) for i in numeric]
    named = 0 not in numeric
    with open_text(path) as file:
        for line, fields in enumerate(csv.reader(file, delimiter=delimiter), start=1):
            if line <= skip + 1 or not fields or (len(fields) == 1 and fields[0].startswith("!")):
                continue
            row = f"{path}: line {line}{f' ({fields[0][:40]})' if named else ''}"
            if len(fields) != len(header):
                raise InputError(f"{row} has {len(fields)} fields, {len(header)} were expected; {remedy}")
            for i in numeric:
                text = fields[i].strip()
                if missing_allowed and text.lower() in MISSING:
                    continue
                if problem := bad_value(text.replace(",", ".") if decimal == "," else text, lowest):
                    raise InputError(
                        f"{row}, column {header[i]}: {problem}, a finite number{' of at least 0' * (lowest == 0)} was "
                        f"expected; {remedy}"
                    )


def bad_value(text: str, lowest: float = 0.0) -> str:
    """Return what is wrong with a field that should be a finite number of at least `lowest`, "" where nothing is."""
    if text.lower() in MISSING:
        return f"the value is missing ({text or 'empty'})"
    if not is_number(text):
        return f"{text[:30]!r} is not a number"
    with np.errstate(over="ignore"):
        value = np.float32(text)
    if not np.isfinite(value):
        return f"the value is {'not a number' if np.isnan(value) else 'infinite'} ({text[:30]})"
    return f"the value is negative ({text[:30]})" if value < lowest else ""
