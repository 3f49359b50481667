"""Files that are either whole or not there: written beside, fsynced, renamed."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.stopping import being_written, held_back, written


@contextmanager
def atomic_path(path: str | Path, previous: str | Path | None = None, synced: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success fsync it and rename it to `path`, on any error remove it.

    A reader sees the old file or the new one, never half of one; a full disk leaves the old one as it was. `previous`:
    where the old file is kept; at every moment one of the two names is there. `synced`: False for what a power cut may
    cost, such as thousands of pictures for a report, as a disk takes milliseconds to say that it has one. A signal in
    the midst leaves nothing half-written, and waits while files are renamed. An OSError of the writing, which by itself
    names no file or the one beside, names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    being_written(partial)
    try:
        yield partial
        if synced:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        with held_back():
            if previous is not None and path.exists():
                _give_second_name(path, Path(previous))
            os.replace(partial, path)
            if synced:
                _fsync_folder(path.parent)
    except OSError as error:
        if error.filename2 is None and str(error.filename) in ("None", str(partial)):
            error.strerror = error.strerror or str(error)  # numpy's and Pillow's have a text only
            error.filename = str(path)
        raise
    finally:
        with held_back():
            partial.unlink(missing_ok=True)
            written(partial)


def make_folder(path: str | Path) -> Path:
    """Make a folder to write to where there is none, before the work whose result goes there; OSError names it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "permission denied", str(path))
    return path


def remove_partials(folder: str | Path) -> None:
    """Remove what killed processes left half-written in `folder`: files of a process that is gone, or an hour old.

    For a process that has not begun to write there: a file of its own number is of an earlier one (in a container
    numbers are the same each time).
    """
    for path in Path(folder).glob(".*.partial"):
        number = path.name.split(".")[-2]
        if not number.isdigit():
            continue
        try:
            if int(number) == os.getpid() or not is_running(int(number)) or time.time() - path.stat().st_mtime > 3600:
                path.unlink()
        except OSError:  # gone meanwhile, or not ours to remove: never a reason not to train
            continue


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, as a whole or not at all. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError names the file, line and column of a fault."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, a JSON file was expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error.reason} at byte {error.start}), JSON expected") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; mend the JSON") from None
    except (RecursionError, ValueError) as error:  # a number of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
        raise InputError(f"{path}: {reason}; mend the JSON") from None


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_running(process: int) -> bool:
    """Say whether this machine runs a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # someone else's
        pass
    return True


def _give_second_name(path: Path, name: Path) -> None:
    """Make `name` the file at `path` too, in place of what it was; where files cannot be linked it is moved there."""
    link = path.with_name(f".{name.name}.{os.getpid()}.partial")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, name)
    except OSError:  # a file system without hard links
        os.replace(path, name)
    finally:
        link.unlink(missing_ok=True)  # still there where `name` was this file already


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot sync a folder; the file itself is synced
        pass
    finally:
        os.close(handle)
