"""Two processes against one, a thread each: drawing tiles into a folder, and their features by an extractor.

    OMP_NUM_THREADS=1 python benchmarks/shards.py --n 3

The tiles are those of an untrained DCGAN of the paper's size, written by write_tiles as generate_tissue_images.py does;
the features are those of Draws as fid.py computes them, efficientnet-lite0 at its own side, no cache. Turns of one and
of two processes alternate, the first of each is not counted. What is timed begins and ends where all processes are
there: without their start (some seconds, the same for both). Beside the ratio of times stands that of processor times,
of the process that took the most: what is left of it where the processes do not share their processors with others. The
files and the features must be equal, to the bit.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import cpu
from common.distributed import current, joined, launch, under_torchrun
from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANGenerator
from models.features import load_extractor
from sources.draws import Draws
from sources.gan import GAN, GANSource
from sources.real import FolderSource
from sources.tile_folder import TileFolder, write_tiles

DIMS, CHANNELS = 2048, 64


def work(folder: Path, tiles: int, side: int) -> None:
    """Draw the tiles and extract their features, with the other ranks; rank 0 writes seconds and digests."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = ConditionedGenerator(DCGANGenerator(DIMS, side, CHANNELS), InputRule(), DIMS).eval()
    generator.network.fold()
    about = {"vae_digest": None, "img_size": side, "mpp": 0.5, "epoch": 0, "settings": {"loss_type": "wgan"}}
    state = {"conditional": False, "tissues": ["none"], **about}
    source = GANSource(GAN(Path("untrained.model"), "0" * 64, generator, state, torch.device("cpu")))
    extractor = load_extractor()
    with joined(torch.device("cpu")):
        drawing = timed(lambda: write_tiles(source, {}, TileFolder(folder / "tiles"), tiles, 1, 64))
        draws = Draws("A", FolderSource(folder / "tiles", side), extractor, tiles, 1, 1, 16)
        extracting = timed(draws.extract)
        if current().main:
            files = hashlib.sha256(b"".join(p.read_bytes() for p in sorted((folder / "tiles").glob("*.png"))))
            features = hashlib.sha256(np.ascontiguousarray(draws.features(0)).tobytes())
            digests = {"files": files.hexdigest(), "features_digest": features.hexdigest()}
            (folder / "found.json").write_text(json.dumps({"drawing": drawing, "features": extracting, **digests}))


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of what all ranks do, and the processor seconds of the rank that took the most."""
    current().wait()
    start, spent = time.perf_counter(), time.process_time()
    action()
    spent = time.process_time() - spent
    current().wait()
    return time.perf_counter() - start, max(float(x) for x in current().gather(torch.tensor([spent])))


def turn(processes: int, tiles: int, side: int) -> dict[str, Any]:
    """Return what so many processes found."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--work", folder, "--tiles", str(tiles), "--side", str(side)]
        subprocess.run([*words, "--parallel", str(processes)], check=True)
        return json.loads((Path(folder) / "found.json").read_text())


def main() -> int | None:
    """Alternate, compare, print the medians and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--tiles", type=int, default=256, help="tiles a turn (default 256)")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--parallel", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work and args.parallel > 1 and not under_torchrun():
        return launch(args.parallel, sys.argv)
    if args.work:
        work(Path(args.work), args.tiles, args.side)
        return None

    found: dict[int, list] = {1: [], 2: []}
    for _ in range(args.n + 1):
        for processes, turns in found.items():
            turns.append(turn(processes, args.tiles, args.side))
            print(f"{processes}: {turns[-1]}", flush=True)
    every = found[1] + found[2]
    result = {"benchmark": "shards", "processes": [1, 2], "threads_each": 1}
    for what in ("drawing", "features"):
        for k, kind in enumerate(("ratio", "processor_ratio")):
            one, two = (statistics.median(t[what][k] for t in turns[1:]) for turns in found.values())
            result |= {f"{what}_{kind}": round(one / two, 3)}
    result |= {f"{what}_equal": len({t[what] for t in every}) == 1 for what in ("files", "features_digest")}
    print(json.dumps({**result, "n": args.n, "tiles": args.tiles, "side": args.side, **cpu()}))
    return None


if __name__ == "__main__":
    sys.exit(main())
