"""Seconds to save and to load a sealed checkpoint, part by part, and how often that may be done.

    python benchmarks/saving.py [--gigabytes 3.64] [--repeats 3] [--folder FOLDER]
    python benchmarks/saving.py --training MINUTES [--folder FOLDER]

The state is random numbers in tensors of 64 MB, as large as a whole last.pt: networks, moving average and Adam's
moments. Saving looks for numbers that are not finite, digests, writes, syncs, reads back from the disk, and renames;
loading reads and digests. The numbers are medians; the disk is that of --folder (default: where temporary files go).
The last line is JSON; `least_seconds`: between two saves, so that they take SAVE_SHARE of the time at most.

--training: betaVAE_training.py with the paper's network (19,198 genes, 303 M parameters; last.pt has 3.6 GB) on 60
made-up profiles, on the CPU, asked to save every minute, ended by SIGTERM. `share`: of the time from the end of the
first save, whose cost nobody knew before, to the end of the last that was not the signal's, what went into saving.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import betaVAE_training
from common import checkpoint, files
from common.errors import EXIT_STOPPED, run_command
from common.run import SAVE_SHARE, Run
from datasets.expression import ExpressionTable, write_expression

CHUNK = 1 << 24  # numbers of a tensor, 64 MB
GENES = 19_198  # the paper's
DONORS = 60
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


def write_config(folder: Path) -> Path:
    """Write a table of random profiles and the settings of the paper's beta-VAE; return the settings' path."""
    values = np.random.default_rng(0).gamma(0.5, 20, (DONORS, GENES)).astype(np.float32)
    names = [f"GTEX-{i:04d}-0626" for i in range(DONORS)]
    obs = pd.DataFrame({"wsi_file_name": names, "donor": [n[:9] for n in names], "tissue": "lung"}, index=names)
    write_expression(ExpressionTable(values, [f"ENSG{i:011d}.1" for i in range(GENES)], obs), folder / "lung.h5ad")
    said = {"path_csv": [f"{folder}/lung.h5ad"], "save_dir": f"{folder}/run", "device": "cpu", "batch_size": 16}
    config = folder / "vae.json"
    config.write_text(json.dumps(said | {"num_epochs": 100_000, "save_every": 60}))
    return config


def training(minutes: float, parent: str | None) -> dict[str, Any]:
    """Train the paper's beta-VAE for so long; return what its saves took."""
    saves: list[tuple[float, float]] = []  # begin and end, seconds
    saving = Run.saving

    @contextmanager
    def noted(run: Run) -> Iterator[None]:
        begin = time.monotonic()
        with saving(run):
            yield
        saves.append((begin, time.monotonic()))
        print(f"a save of {saves[-1][1] - begin:.1f} s after {begin - start:.0f} s", flush=True)

    Run.saving = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        words, start = ["--config", str(write_config(folder))], time.monotonic()
        timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        status = run_command(betaVAE_training.main, betaVAE_training.build_parser(), words)
        if status != EXIT_STOPPED or len(saves) < 3:
            sys.exit(f"status {status}, {len(saves)} saves: three or more were expected; train for longer")
        steps = checkpoint.load_checkpoint(folder / "run" / "last.pt")[0]["step"]
        size = (folder / "run" / "last.pt").stat().st_size + (folder / "run" / "best.pt").stat().st_size
    paid = saves[1:-1]
    spent, whole = sum(end - begin for begin, end in paid), paid[-1][1] - saves[0][1]
    return {
        "benchmark": "saving in training",
        "gigabytes": round(size / 1e9, 2),
        "minutes": round((saves[-1][1] - start) / 60, 1),
        "steps": steps,
        "saves_s": [round(end - begin, 1) for begin, end in saves],
        "share": round(spent / whole, 4),
    }


def main(args: argparse.Namespace) -> None:
    """Train, or save and load in turns, and print the medians of each part; the last line is JSON."""
    result = training(args.training, args.folder) if args.training else parts(args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result | {"peak_rss_gb": round(peak, 2)}))


def parts(args: argparse.Namespace) -> dict[str, Any]:
    """Save and load in turns; print and return the medians of each part."""
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
    return {
        "benchmark": "saving",
        "gigabytes": round(size / 1e9, 2),
        "save_s": round(middle["save"], 2),
        "load_s": round(middle["load"], 2),
        "least_seconds": round(middle["save"] * (1 / SAVE_SHARE - 1), 1),
        "n": args.repeats,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--training", type=float, help="minutes to train for")
    parser.add_argument("--folder", help="on the disk to be measured")
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args())
