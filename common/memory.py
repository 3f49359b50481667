"""Memory: how much is free, and what was freed kept for the next time, where giving it back costs more."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, where it is glibc: a step on a CPU frees and takes alike.

    By default large blocks go back to the system at once and come anew, cleared page by page: a third of a beta-VAE's
    step. The process's memory then never shrinks.
    """
    trim_threshold, mmap_max = -1, -4  # mallopt(3): -1 as a value is "never", 0 is "none"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)


def free_memory() -> float:
    """Return the bytes of memory that are free, or hold files that can be dropped: the machine's, or what a container
    or a Slurm job (its control group) still has, where that is less (Linux)."""
    machine = next(
        (float(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")),
        float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )
    return min([machine, *_left_to_group()])


def _left_to_group() -> Iterator[float]:
    """Yield what each control group of this process, and each above it, may still take; versions 1 and 2."""
    for line in _lines("/proc/self/cgroup"):
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root, limit, used = ("/sys/fs/cgroup", "memory.max", "memory.current")
        if kinds:
            root, limit, used = (f"{root}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = Path(root + place)
        for group in (folder, *folder.parents):
            numbers = [_lines(group / name) for name in (limit, used)]
            if all(number and number[0].isdigit() for number in numbers):
                yield float(numbers[0][0]) - float(numbers[1][0])


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
