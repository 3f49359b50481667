"""What a user sees when something is wrong: one line, with the remedy, and an exit status that scripts can rely on.

Exit status: 0 done, 1 a fault of ours, 2 bad input, 3 finished but some slides failed, 75 stopped by a signal and
resumable (sysexits' EX_TEMPFAIL).
"""

import argparse
import difflib
import errno
import io
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.stopping import EXIT_STOPPED, Interrupted, remove_unfinished, signals_handled

EXIT_DONE, EXIT_FAULT, EXIT_BAD_INPUT, EXIT_SOME_FAILED = 0, 1, 2, 3
SAID = "SAID_IN"  # the environment's name for the number of an open file, of all processes that `launch` starts
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """The user's input is wrong. The message names the file, the row or column, what was expected and the remedy."""


class Stopped(Exception):
    """A signal asked the run to stop, and everything needed to go on is on disk."""


class Elsewhere(Exception):
    """Another rank has said what is wrong: this one leaves with the same exit status, and says nothing."""

    told = True

    def __init__(self, status: int) -> None:
        super().__init__(f"another rank left with exit status {status}")
        self.status = status


def did_you_mean(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return '; nearest: a, b' for the n known names closest to `name`, or '' where none is close."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=n, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


def shorten(names: Iterable[object], limit: int = 5) -> str:
    """Return 'a, b, c and 12 more': a list for an error message that stays on one line."""
    names = [str(n) for n in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage, and whose flags are written out; sub-parsers likewise."""

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse; a list that begins with a minus (--alphas -2,-1,0) is a value, which argparse takes for a flag."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if re.match(r"-\.?\d[^=]*,", word) and words and re.match(r"--\w+$", words[-1]):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Leave with exit status 2 and one line on stderr."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def command_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose --help is the command's docstring, with the flags that every command has."""
    parser = CommandParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run_command(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv`, call `main`, turn every error and signal into one line on stderr; return the exit status."""
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)  # what was typed, for those who start it again
    if another_rank():
        _print_nothing()
    with signals_handled():
        try:
            return main(args) or EXIT_DONE
        except (Exception, KeyboardInterrupt) as error:
            message, status = _explain(error)
            if args.debug:
                traceback.print_exc()
            told = getattr(error, "told", None)  # common.distributed: whether another rank tells the user
            if told is None and isinstance(error, KeyboardInterrupt):  # a signal comes to all
                told = another_rank() and os.environ.get("LOCAL_RANK", "0") != "0"
            at_once = getattr(error, "at_once", False)
        remove_unfinished()
        text = " ".join(message.split())
        if told is False or (told is None and _is_first_to_say(text)):
            rank = f"rank {os.environ['RANK']}: " if another_rank() else ""
            print(f"{parser.prog}: error: {rank}{text}", file=sys.stderr, flush=True)
        if at_once:
            sys.stdout.flush()
            os._exit(status)  # what Python does when it ends may wait for a GPU for ever
    return status


def exit_status(error: BaseException) -> int:
    """Return the exit status that `run_command` gives an error."""
    return _explain(error)[1]


def another_rank() -> bool:
    """Return whether this is one of several processes on a job and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0" and "WORLD_SIZE" in os.environ


def _is_first_to_say(text: str) -> bool:
    """Return whether no other process that `common.launching.launch` started has said this before they met.

    Those that something else started cannot know of one another then: each speaks.
    """
    if SAID not in os.environ or os.environ.get("LAUNCHED_BY") != str(os.getppid()):
        return True  # nor does a process have the file that a rank has started in turn
    import fcntl  # not on Windows, nor does anything start several processes there

    with open(int(os.environ[SAID]), "a+", encoding="utf-8", closefd=False) as said:
        fcntl.lockf(said, fcntl.LOCK_EX)
        said.seek(0)
        if first := f"{text}\n" not in said.readlines():
            said.write(f"{text}\n")
            said.flush()
        fcntl.lockf(said, fcntl.LOCK_UN)
    return first


def _print_nothing() -> None:
    """Send what is printed nowhere; stderr is kept for errors, without what is drawn on a terminal only (bars)."""

    class NoTerminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return False

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    sys.stderr = NoTerminal(open(sys.stderr.fileno(), "wb", closefd=False), line_buffering=True)  # noqa: SIM115


def _explain(error: BaseException) -> tuple[str, int]:
    """Return what to tell the user, and the exit status."""
    if isinstance(error, InputError):
        return str(error), EXIT_BAD_INPUT
    if isinstance(error, Elsewhere):
        return str(error), error.status
    if isinstance(error, Stopped):
        return f"{error}; type the same command again to go on", EXIT_STOPPED
    if isinstance(error, Interrupted):
        return f"stopped by {error}; type the same command again to go on", EXIT_STOPPED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; type the same command again to go on", EXIT_STOPPED
    if isinstance(error, OSError):
        return explain_os_error(error), EXIT_BAD_INPUT
    if out_of_memory(error):
        return _explain_memory(error), EXIT_BAD_INPUT
    hint = "this is a fault of the program; run again with --debug for the traceback"
    return f"{type(error).__name__}: {error} ({hint})", EXIT_FAULT


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of the machine or a GPU: torch says so by a RuntimeError."""
    words = ("can't allocate memory", "out of memory")
    told = isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    return isinstance(error, MemoryError) or told or _is_torchs_out_of_memory(error)


def _is_torchs_out_of_memory(error: BaseException) -> bool:
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch need not be imported


def _explain_memory(error: BaseException) -> str:
    """Return whose memory ran out, and the remedy, which is another for a GPU's than for the machine's."""
    what = " ".join(str(error).split())[:160]
    if _is_torchs_out_of_memory(error) or "CUDA" in what:  # CUDA's own libraries raise a plain RuntimeError
        who, remedy = "the GPU", "lower --micro_batch (training) or --batch_size, or end another program that uses it"
    else:
        who, remedy = "this machine", "end what else runs on it, ask for more (Slurm: --mem) or lower batch_size"
    return f"{who} is out of memory{what and f' ({what})'}: {remedy}; then type the same command again"


def explain_os_error(error: OSError) -> str:
    """Return what an OSError means to a user: the file, what is wrong with it and the remedy."""
    where = error.filename2 or error.filename or "a file"  # a rename names its target second
    if error.errno in NO_SPACE:
        room = _room(error, Path(where).absolute().parent)
        return f"{where}: no space left on the disk (or quota reached){room} and type the same command again"
    if isinstance(error, FileNotFoundError):
        return f"{where}: no such file or folder; check the path (relative paths start at {os.getcwd()})"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{where}: permission denied; choose a folder that you may write to"
    if isinstance(error, IsADirectoryError):
        return f"{where}: is a folder, a file was expected; name a file, or remove the folder"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{where}: a folder was expected, a file stands in its place; choose another path, or move the file"
    return f"{where}: {error.strerror or error}; a file that can be read and written was expected; check path and disk"


def _room(error: OSError, folder: Path) -> str:
    """Return how many bytes are needed (where whoever wrote says so) and free, and what to do about it."""
    needed = f"{error.needed:,} bytes are needed, " if hasattr(error, "needed") else ""
    while not folder.exists():
        folder = folder.parent
    if error.errno == errno.EFBIG:
        import resource  # not on Windows, nor is this limit

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        allowed = f"a file may have {limit:,} bytes" if limit >= 0 else "the file system takes no file so large"
        return f": {needed}{allowed} (ulimit -f); raise the limit"
    try:
        free = f"{shutil.disk_usage(folder).free:,} bytes are free in {folder}"
    except OSError:
        free = f"too few are free in {folder}"
    return f": {needed}{free}; free some space there"


def warn(message: str) -> None:
    """Tell the user, on stderr and on one line, what was changed, ignored or assumed; of several ranks, the first."""
    if another_rank():
        return
    print(f"warning: {' '.join(message.split())}", file=sys.stderr, flush=True)
