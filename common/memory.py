"""Memory that was freed: kept for the next time, where giving it back costs more."""

import ctypes
import os


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
