"""Memory: how much is free, how much is in use, and what was freed kept for the next time."""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # takes seconds, and on a CPU nothing here needs it


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


def in_use(device: "torch.device") -> float:
    """Return bytes: on a GPU the most that tensors have held so far, on a CPU what this process has in memory now."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device))
    for line in _lines("/proc/self/status"):
        if line.startswith("VmRSS:"):
            return float(line.split()[1]) * 1024
    return peak_of_process()


class PeakMemory:
    """The most memory that is taken from here on, beyond what is in use now: of tensors on a GPU, of a process else."""

    def __init__(self, device: "torch.device") -> None:
        self._device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then the process's whole life's
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 sets VmHWM back to VmRSS
        self._before = in_use(device)

    def taken(self) -> float:
        """Return it, in bytes; 0 where all came from memory that this process had kept."""
        on_gpu = self._device.type == "cuda"
        # A process's peak may read a little less than what it has: the kernel counts the two at different moments.
        return max((in_use(self._device) if on_gpu else peak_of_process()) - self._before, 0.0)


def peak_of_process() -> float:
    """Return the most bytes that this process has had in memory."""
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # another system than Linux
    return float(peak) * (1 if sys.platform == "darwin" else 1024)


def free_on(device: "torch.device") -> float:
    """Return the bytes that are free on a GPU, or in memory for a CPU."""
    if device.type != "cuda":
        return free_memory()
    import torch

    return float(torch.cuda.mem_get_info(device)[0])


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
