"""Sides of a benchmark that take turns, each in a process of its own: its memory is its own, and so is its peak."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def has_bf16() -> bool:
    """Return whether this processor multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere it is emulated and slow."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


def cpu() -> dict[str, Any]:
    """Return what a result says of the processor and torch."""
    return {"cpu": torch.backends.cpu.get_cpu_capability(), "bf16_in_hardware": has_bf16(), "torch": torch.__version__}


def serve(turn: Callable[[], dict[str, Any]]) -> None:
    """Do `turn` for each line of stdin; answer with a line of JSON: seconds, peak_rss_gb, and what it returned."""
    for _ in sys.stdin:
        start = time.perf_counter()
        more = turn()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_rss_gb": round(peak, 2)} | more), flush=True)


def take_turns(names: list[str], n: int) -> dict[str, list[dict[str, Any]]]:
    """Start this script once per name, with `--only NAME` added; return their answers of 1 + n turns each."""
    command = [sys.executable, *sys.argv, "--only"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides = {name: subprocess.Popen([*command, name], **pipes) for name in names}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(n + 1):
        for name, side in sides.items():
            side.stdin.write("\n")
            side.stdin.flush()
            answers[name].append(json.loads(side.stdout.readline()))
            print(f"{name}: {answers[name][-1]}", flush=True)
    for side in sides.values():
        side.stdin.close()
        side.wait()
    return answers
