"""Several processes on one job, each a rank of `world`: as torchrun starts them, or `launch`. With one nothing happens.

Every rank runs the same command on the same inputs and takes its share of each batch. Rank 0 alone prints and writes.
No wait is without end: RANK_TIMEOUT seconds in the environment (600) is the longest that a rank waits for the others. A
rank that is gone ends the others with exit status 75; the same command goes on from the last checkpoint. One that
leaves with an error ends them with its own exit status, so that nobody starts again what would fail again.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its functions would take for a default and keep for ever

from common.errors import Elsewhere, InputError, Stopped, exit_status, shorten
from common.launching import launch as launch  # --parallel

TIMEOUT = 600  # seconds
ROLL_CALL = 10  # seconds in which the ranks that are left answer, once one is missed; ours
FAREWELL = 60  # seconds that a process has for leaving; ours
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun's environment

T = TypeVar("T")


class LostRank(Stopped):
    """Another rank is gone, or does not answer: this one cannot go on. `gone`: which, where it is known."""

    gone: Iterable[int] = ()


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes this is; `local`: its number on its machine, and its GPU there.

    All ranks call the methods that talk (`sum`, `gather`, `any`, `wait`) in the same order. LostRank where one is gone.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return this rank's part of n items: contiguous; sizes differ by one at most, the first are larger."""
        size, more = divmod(n, self.world)
        first = self.rank * size + min(self.rank, more)
        return slice(first, first + size + (self.rank < more))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` summed over the ranks, in place: gloo for what is on a CPU, nccl on a GPU."""
        if self.world > 1:
            whole = x if x.is_contiguous() else x.contiguous()
            _together(lambda: dist.all_reduce(whole))
            if whole is not x:
                x.copy_(whole)
        return x

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's `x` in rank order, as they are: first dimensions may differ, the others not."""
        if self.world == 1:
            return [x]
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.world)]
        _together(lambda: dist.all_gather(lengths, torch.tensor([len(x)])))
        longest = int(max(lengths))
        if not longest:
            return [x.clone() for _ in lengths]
        padded = x.new_zeros((longest, *x.shape[1:]))
        padded[: len(x)] = x
        flat = padded.flatten().view(torch.uint8)  # bytes: gloo does not take every type
        parts = [torch.empty_like(flat) for _ in lengths]
        _together(lambda: dist.all_gather(parts, flat))
        return [p.view(x.dtype).view(padded.shape)[:n] for p, n in zip(parts, map(int, lengths), strict=True)]

    def any(self, flag: bool) -> bool:
        """Return whether any rank says so: the same answer for all."""
        return bool(self.sum(torch.tensor([int(flag)]))) if self.world > 1 else bool(flag)

    def wait(self) -> None:
        """Return when all ranks are here."""
        self.any(False)


ALONE = Ranks()
_here = ALONE
_store: Any = None  # what the ranks tell one another beside the batches: torch's TCPStore


def current() -> Ranks:
    """Return who this process is: ALONE outside of `joined`."""
    return _here


@contextmanager
def alone() -> Iterator[None]:
    """Work for which this rank asks no other, as where rank 0 alone runs a network: `current` is ALONE meanwhile."""
    global _here
    before, _here = _here, ALONE
    try:
        yield
    finally:
        _here = before


def under_torchrun() -> bool:
    """Return whether this process was started as one of several, by torchrun or `launch`."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def on_this_machine() -> int:
    """Return how many processes of this job share the machine, its memory and its GPUs."""
    return max(_number("LOCAL_WORLD_SIZE", 1), 1) if under_torchrun() else 1


def patience_of_several(seconds: float) -> float:
    """Return how long to wait for something that is tried twice: with several ranks a quarter of RANK_TIMEOUT at most.

    So that the rank that waits says for what, before the others miss it.
    """
    several = under_torchrun() and _number("WORLD_SIZE", 1) > 1
    return min(seconds, _limit() / 4) if several else seconds


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the ranks that torchrun's environment names, until the end of the block; ALONE where there is none.

    InputError where the environment is incomplete or the others do not come within RANK_TIMEOUT.
    """
    global _here, _store
    if not under_torchrun() or _number("WORLD_SIZE", 1) == 1:
        yield ALONE
        return
    if missing := [name for name in NEEDED if name not in os.environ]:
        raise InputError(f"{', '.join(missing)} not set: start several processes with torchrun, or with --parallel")
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    ranks = Ranks(rank, world, _number("LOCAL_RANK", 0))
    limit = timedelta(seconds=_limit())
    _leave_with(_number("LAUNCHED_BY", 0))
    backend = "cpu:gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend += ",cuda:nccl"
    try:
        _store, *_ = next(dist.rendezvous("env://", timeout=limit))
        inner = dist.PrefixStore("batches", _store)
        dist.init_process_group(backend, store=inner, rank=rank, world_size=world, timeout=limit)
        _store.set(f"place/{rank}", f"{socket.gethostname()} {os.getpid()}")
        _here = ranks
        ranks.wait()
    except BaseException as error:
        with suppress(RuntimeError, ValueError, AssertionError):  # there may be none
            dist.destroy_process_group()
        _here, _store = ALONE, None
        if not isinstance(error, RuntimeError | LostRank):
            raise
        raise InputError(
            f"not all {world} ranks met at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within "
            f"{limit.total_seconds():g} s ({_first_line(error)}); start all of them, and check address and port"
        ) from None
    failed: BaseException | None = None
    try:
        yield ranks
    except BaseException as error:
        failed = error
        error.told = not _may_speak(rank, error)  # common.errors.run_command asks
        error.at_once = device.type == "cuda"  # and this: a GPU may wait for a rank that is gone
        _tell_others(rank, error)
        raise
    finally:
        _here = ALONE
        _leave(ranks, failed if getattr(failed, "at_once", False) else None, getattr(failed, "gone", ()))
        _store = None  # its threads, and the group's, end here: when Python ends they would abort the process


# ---- A rank that is gone ----


def _together(action: Callable[[], T]) -> T:
    start = time.monotonic()
    try:
        return action()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's errors of gloo, of nccl and of its store are of this kind
        waited = time.monotonic() - start
        gone, ended = _gone()
        if not gone and not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise  # a fault of ours
        who = f"rank {shorten(gone, 8)} of {_here.world}" if gone else "another rank"
        if waited >= 0.9 * _limit() and not ended:
            why = f"does not answer within {_limit()} s; RANK_TIMEOUT={2 * _limit()} in the environment allows more"
        else:
            why = "is gone" if gone else f"does not answer ({_first_line(error)})"
        lost = LostRank(f"{who} {why}; the run is as its last checkpoint left it")
        lost.gone = gone
        try:
            raise lost from None
        finally:
            del lost  # else it keeps this frame, and with it torch's, which hold the group, until a collection


def _gone() -> tuple[list[int], bool]:
    """Return the ranks whose process has ended here, else those that do not answer within ROLL_CALL seconds; which.

    Elsewhere, with its exit status, where one has left with an error.
    """
    others = [k for k in range(_here.world) if k != _here.rank]
    try:
        _store.set_timeout(timedelta(seconds=ROLL_CALL))
        _store.set(f"here/{_here.rank}", "")
        deadline = time.monotonic() + ROLL_CALL
        while True:
            if left := [k for k in others if _store.check([f"failed/{k}"])]:
                raise Elsewhere(int(_store.get(f"failed/{left[0]}")))
            ended = sorted(_ended_here(others))
            silent = [k for k in others if not _store.check([f"here/{k}"])]
            if ended or not silent or time.monotonic() > deadline:
                return ended or silent, bool(ended)
            time.sleep(0.1)
    except RuntimeError:  # the store is rank 0's, unless torchrun's agent holds it
        return ([], False) if _here.rank == 0 else ([0], True)


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _may_speak(rank: int, error: BaseException) -> bool:
    """Return whether this rank tells the user of the error: the first does, or rank 0 of what all have agreed on."""
    if type(error) is Stopped:
        return rank == 0
    if isinstance(error, Elsewhere) or (isinstance(error, KeyboardInterrupt) and rank):  # a signal comes to rank 0 too
        return False
    with suppress(RuntimeError):
        return _store.compare_set("first", "", str(rank)).decode() == str(rank)
    return True


def _tell_others(rank: int, error: BaseException) -> None:
    """Leave this rank's exit status for those that will miss it; not of what comes to all, nor of a signal."""
    if isinstance(error, Exception) and not isinstance(error, LostRank | Elsewhere) and type(error) is not Stopped:
        with suppress(RuntimeError):
            _store.set(f"failed/{rank}", str(exit_status(error)))


def _leave(ranks: Ranks, at_once: BaseException | None, gone: Iterable[int]) -> None:
    """Leave the group; rank 0, which may hold the store, last. `at_once`: the error for which a GPU is not waited for.

    Then this process ends within FAREWELL seconds, with the error's exit status, whatever else there is to do.
    """
    if at_once is not None:
        last = threading.Timer(FAREWELL, os._exit, (exit_status(at_once),))
        last.daemon = True
        last.start()
    else:
        with suppress(RuntimeError):
            dist.destroy_process_group()
    with suppress(RuntimeError):
        _store.set_timeout(timedelta(seconds=1))
        _store.set(f"left/{ranks.rank}", "")
        deadline = time.monotonic() + 3 * ROLL_CALL  # longer than the others' roll call
        while ranks.main and time.monotonic() < deadline:
            staying = {k for k in range(ranks.world) if not _store.check([f"left/{k}"])}
            if not staying - _ended_here(staying) - set(gone):
                break
            time.sleep(0.05)


def _ended_here(ranks: Iterable[int]) -> set[int]:
    """Return those of `ranks` whose process ran on this machine and has ended."""
    places = {k: _store.get(f"place/{k}").decode().split() for k in ranks}
    return {k for k, (host, pid) in places.items() if host == socket.gethostname() and _has_ended(int(pid))}


def _leave_with(launcher: int) -> None:
    """Ask Linux for a SIGTERM when the process that started this one is killed."""
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _limit() -> int:
    return _number("RANK_TIMEOUT", TIMEOUT)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdigit():
        raise InputError(f"{name} = {text!r} in the environment: a number was expected")
    return int(text)
