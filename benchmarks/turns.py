"""Sides of a benchmark that take turns, each in a process of its own: its memory is its own, and so is its peak."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of /proc/cpuinfo: the processor multiplies bf16 itself
POLL = 0.2  # seconds between two looks at another program's peak


# ---- The processor and memory ----


def bf16_flags() -> dict[str, bool]:
    """Return which of BF16_FLAGS this processor has."""
    words = set(_cpuinfo().split())
    return {flag: flag in words for flag in BF16_FLAGS}


def has_bf16() -> bool:
    """Return whether this processor multiplies bf16 itself; elsewhere it is emulated and slow."""
    return any(bf16_flags().values())


def cpu() -> dict[str, Any]:
    """Return what a result says of the processor (name, flags, what torch takes it for) and of torch."""
    import torch  # here: what has no need of it starts in no time

    names = (line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name"))
    result = {"cpu": next(names, "unknown"), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return result | bf16_flags() | {"torch": torch.__version__}


def peak_mb(process: int | str = "self") -> float:
    """Return the peak memory of a process (by its id) in MB: VmHWM, which begins with the program that it runs.

    ru_maxrss would also count the process that started it. 0 for another process that has ended.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if process == "self" else 0.0


def run_watched(command: list[str], **options: Any) -> tuple[float, float]:
    """Run another program to its end; return its seconds and its peak memory in MB, looked at every POLL seconds.

    CalledProcessError where it fails. `options` are those of Popen.
    """
    start, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, **options) as child:
        while child.poll() is None:
            peak = max(peak, peak_mb(child.pid))
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return seconds, peak


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


# ---- Turns ----


def serve(turn: Callable[[], dict[str, Any]]) -> None:
    """Do `turn` for each line of stdin; answer with a line of JSON: seconds, peak_rss_gb, and what it returned."""
    for _ in sys.stdin:
        start = time.perf_counter()
        more = turn()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_rss_gb": round(peak_mb() / 1024, 2)} | more), flush=True)


def take_turns(names: list[str], n: int) -> dict[str, list[dict[str, Any]]]:
    """Start this script once per name, with `--only NAME` added; return their answers of 1 + n turns each.

    Where a side ends, or answers with something else than JSON, the others are ended too and the message names it.
    """
    command = [sys.executable, *sys.argv, "--only"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides = {name: subprocess.Popen([*command, name], **pipes) for name in names}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for _ in range(n + 1):
            for name, side in sides.items():
                answers[name].append(_answer(name, side))
                print(f"{name}: {answers[name][-1]}", flush=True)
        for side in sides.values():
            side.stdin.close()
            side.wait()
    finally:
        for side in sides.values():
            side.kill()  # of no effect on those that have ended
            side.wait()
    return answers


def _answer(name: str, side: subprocess.Popen) -> dict[str, Any]:
    """Ask a side for one turn; SystemExit names it where there is no answer."""
    line = ""
    with suppress(BrokenPipeError):
        side.stdin.write("\n")
        side.stdin.flush()
        line = side.stdout.readline()
    try:
        return json.loads(line)
    except ValueError:
        if line:
            sys.exit(f"side {name}: expected a line of JSON, found {line[:200]!r}")
    with suppress(subprocess.TimeoutExpired):
        side.wait(10)
    sys.exit(f"side {name} ended without an answer, status {side.returncode}; its own message stands above")
