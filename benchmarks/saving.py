"""Seconds to save and to load a sealed checkpoint, part by part, and how often that may be done.

    python benchmarks/saving.py [--gigabytes 3.6] [--repeats 3] [--folder FOLDER]

The state is random numbers in tensors of 64 MB, as large as a whole last.pt: networks, moving average and Adam's
moments. Saving looks for numbers that are not finite, digests, writes, syncs, reads back from the disk, and renames;
loading reads and digests. The numbers are medians; the disk is that of --folder (default: where temporary files go).
The last line is JSON; `least_seconds`: between two saves, so that they take SAVE_SHARE of the time at most.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import checkpoint, files
from common.run import SAVE_SHARE, Run

CHUNK = 1 << 24  # numbers of a tensor, 64 MB
PARTS = ("first_non_finite", "content_digest", "_write", "fsync", "_read_back")


def make_state(gigabytes: float) -> dict[str, Any]:
    """Return random tensors of so many gigabytes (10^9 bytes) in all."""
    generator = torch.Generator().manual_seed(0)
    count = max(round(gigabytes * 1e9 / (4 * CHUNK)), 1)
    return {"step": 1, "model": {str(i): torch.randn(CHUNK, generator=generator) for i in range(count)}}


def timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """Return `function` so that it adds its seconds to `spent`, where it does not call itself."""
    inside = [False]

    def run(*args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            return function(*args, **kwargs)
        inside[0], start = True, time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            inside[0] = False
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    return run


def main(args: argparse.Namespace) -> None:
    """Save and load in turns; print the medians of each part."""
    rounds: list[dict[str, float]] = []
    spent: dict[str, float] = {}
    for name in PARTS:
        module = files.os if name == "fsync" else checkpoint
        setattr(module, name, timed(getattr(module, name), spent, name))
    state = make_state(args.gigabytes)
    size = checkpoint.bytes_of(state)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for _ in range(args.repeats):
            spent.clear()
            run, start = Run(folder, {}), time.perf_counter()
            run.save("last.pt", "benchmark", state)
            spent["save"], start = time.perf_counter() - start, time.perf_counter()
            digested = spent["content_digest"]
            checkpoint.load_checkpoint(Path(folder) / "last.pt", "benchmark")
            spent["load"], spent["digest again"] = time.perf_counter() - start, spent["content_digest"] - digested
            spent["content_digest"] = digested
            rounds.append(dict(spent))
    middle = {name: median(one[name] for one in rounds) for name in rounds[0]}
    print(f"{size / 1e9:.2f} GB, {os.cpu_count()} cores, {torch.get_num_threads()} threads, n = {args.repeats}")
    for name, seconds in middle.items():
        of = "load" if name in ("load", "digest again") else "save"
        print(f"{name.strip('_'):18s} {seconds:7.2f} s   {seconds / middle[of]:4.0%} of {of}")
    result = {
        "benchmark": "saving",
        "gigabytes": round(size / 1e9, 2),
        "save_s": round(middle["save"], 2),
        "load_s": round(middle["load"], 2),
        "least_seconds": round(middle["save"] * (1 / SAVE_SHARE - 1), 1),
        "n": args.repeats,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to be measured")
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args())
