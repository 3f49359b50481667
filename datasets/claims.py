"""Who cuts a slide: a claim file beside its store, so that two runs on one folder share the work and do nothing twice.

A claim is made with O_EXCL, which one process wins, over network file systems too. Its holder touches it while it
works; a claim whose holder is gone is taken over. Should two processes ever cut one slide all the same (clocks minutes
apart, a network in two pieces), nothing is lost: equal slides and settings give equal bytes, and stores are renamed
into place as a whole.
"""

import contextlib
import glob
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import is_running, write_text

BEAT_SECONDS = 15  # between two touches
STALE_SECONDS = 120  # without a touch for so long: the holder is gone, or its host is
PARTIAL_SECONDS = 3600  # a half-written file not touched for so long is nobody's, wherever its process was


@dataclass
class Holder:
    """What a claim file says: whose it is, which attempt of its run, and whether the deadline ended it."""

    run: str = ""
    host: str = ""
    process: int = 0
    attempt: int = 1
    overran: bool = False


def sweep(folder: Path, run: str = "") -> None:
    """Remove the claims, and half-written files, of holders that are gone, and of `run`, whose workers must be dead.

    Half-written files that no claim tells of, as of a process killed on another host, go when they are an hour old.
    """
    for path in folder.glob(".*.claim"):
        before = _read(path)
        if before is not None and ((run and before.run == run) or _is_abandoned(before, path)):
            Claim(folder, path.name[1 : -len(".claim")], run)._take_away(before)
    for path in (*folder.glob(".*.partial"), *folder.glob("previews/.*.partial")):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            if _age(path) > PARTIAL_SECONDS:
                path.unlink()


class Claim:
    """The right to cut the slide `key` into `folder`, for one run.

    `attempt` counts how often this run has begun the slide: a holder that died does not release its claim. `overran`
    says that the attempt before this one was ended by its deadline.
    """

    def __init__(self, folder: Path, key: str, run: str) -> None:
        self.path = folder / f".{key}.claim"
        self.key, self.overran = key, False
        self._holder = Holder(run, socket.gethostname(), os.getpid())

    @property
    def attempt(self) -> int:
        """1 for a slide that this run has not begun before."""
        return self._holder.attempt

    def take(self) -> bool:
        """Take the slide; False where another run is cutting it now. OSError where the claim cannot be written."""
        while not self._create():
            if (before := _read(self.path)) is None:
                continue  # released meanwhile
            if before.run == self._holder.run:  # its worker died: a scheduler hands a slide to one at a time
                self._holder.attempt, self.overran = before.attempt + 1, before.overran
            elif not _is_abandoned(before, self.path):
                return False
            self._take_away(before)
        return True

    def is_held(self) -> bool:
        """Say whether the slide is still this holder's: one that was stopped for minutes loses it to another run."""
        return _read(self.path) == self._holder

    @contextlib.contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Keep the claim alive, then release it; after `timeout` seconds (0: never) end this process, noting why."""
        done = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(done, timeout), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            if self.is_held():
                self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                json.dump(asdict(self._holder), file)
        except FileExistsError:
            return False
        except OSError:  # full disk
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _keep(self, done: threading.Event, timeout: float) -> None:
        end = time.monotonic() + timeout if timeout else float("inf")
        while not done.wait(max(0.0, min(BEAT_SECONDS, end - time.monotonic()))):
            if time.monotonic() >= end:
                try:
                    if self.is_held():
                        self._holder.overran = True
                        write_text(self.path, json.dumps(asdict(self._holder)))
                finally:
                    os._exit(1)  # the slide's reader hangs in a library, where no exception reaches it
            with contextlib.suppress(OSError):
                if self.is_held():
                    os.utime(self.path)

    def _take_away(self, before: Holder) -> None:
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != before:  # another process was faster, and this is its claim
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # taken anew; or swept away, being old
                os.link(aside, self.path)
        else:
            self._remove_partials(before)
        aside.unlink(missing_ok=True)

    def _remove_partials(self, before: Holder) -> None:
        """Remove what the holder left half-written; a fresh file only where its process is known to be gone."""
        gone = before.host == self._holder.host and not is_running(before.process)
        for name in ("{}.tar", "{}.json", "previews/{}.png", "previews/{}.jpg"):
            folder, _, file = name.format(glob.escape(self.key)).rpartition("/")
            for path in (self.path.parent / folder).glob(f".{file}.*.partial"):
                with contextlib.suppress(FileNotFoundError):
                    if gone or _age(path) > STALE_SECONDS:
                        path.unlink()


def _read(path: Path) -> Holder | None:
    """Return what the claim says; None where there is none; nobody's where it is not (yet) written to the end."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError):
        return Holder()


def _is_abandoned(holder: Holder, path: Path) -> bool:
    if holder.host == socket.gethostname() and not is_running(holder.process):
        return True
    try:
        return _age(path) > STALE_SECONDS
    except FileNotFoundError:  # released: the next look will tell
        return False


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
