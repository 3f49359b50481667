"""Many slides: time of one worker and of two; peak memory of a worker against the size of the slide.

    python benchmarks/many_slides.py [--slides 200] [--rounds 3] [--sides 4096 32768]

Time: `prepare_data.py tiles` as its own program, on slides of the demo (1,024 px, 40 tiles of 128 px each), with one
worker and with two in turn; start and end of the program and of the cluster count. Memory: the largest peak (VmHWM) of
a worker process, cutting all tiles of 256 px (--max_tiles 0) of a pyramidal Aperio slide of each side; the slide is
made of the same 64 tiles again and again, written piece by piece. Rate: tiles per second and bytes per tile there.
The last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.turns import peak_mb
from datasets.demo import make_demo
from datasets.demo_cohort import FACTORS
from datasets.demo_tissue import draw_tissue
from datasets.tiles import TileStore

ROOT = Path(__file__).resolve().parent.parent
TILE = 256
DEMO = ["--mpp", "0.5", "--tile_size", "128", "--slide_mpp", "0.5"]


def run_tiles(slides: Path, out: Path, *words: str) -> tuple[float, float]:
    """Run the command; return its seconds, and the largest peak of one of its workers in MB."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(ROOT / "prepare_data.py"), "tiles", "--slides", str(slides), "--out", str(out)]
    start, peak = time.perf_counter(), 0.0
    with subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            for claim in out.glob(".*.claim"):  # names the process that cuts
                try:
                    peak = max(peak, peak_mb(json.loads(claim.read_text())["process"]))
                except (OSError, ValueError):  # released meanwhile
                    continue
            time.sleep(0.02)  # short enough for a slide of 0.3 s
    if child.returncode not in (0, 3):
        raise subprocess.CalledProcessError(child.returncode, command)
    return time.perf_counter() - start, peak


def demo_slides(folder: Path, n: int, side: int) -> Path:
    """Return a folder with links to `n` slides of the demo, of `side` pixels."""
    demo = make_demo(folder / "demo", n_donors=130, slide_px=side)
    chosen = folder / "chosen"
    chosen.mkdir()
    for path in sorted(demo.glob("slides/*/*.svs"))[:n]:
        os.link(path, chosen / f"{path.parent.name}_{path.name}")
    return chosen


def big_slide(path: Path, side: int) -> Path:
    """Write a pyramidal Aperio slide of `side` pixels, full of tissue; never held in memory."""
    import tifffile

    image = draw_tissue("brain", dict.fromkeys(FACTORS, 0.0), 8 * TILE, 0.5, 1)
    pieces = [image[y : y + TILE, x : x + TILE] for y in range(0, 8 * TILE, TILE) for x in range(0, 8 * TILE, TILE)]

    def tiles(n: int) -> Iterator[np.ndarray]:
        for k in range(n * n):
            yield pieces[(k // n * 31 + k) % len(pieces)]

    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        level = side
        while level >= 2 * TILE:
            about = f"Aperio Image Library v11.2.1 \r\n{side}x{side} ({TILE}x{TILE}) -> {level}x{level} JPEG/RGB Q=88"
            tif.write(
                tiles(level // TILE),
                shape=(level, level, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                description=f"{about}|AppMag = 20|MPP = 0.5",
                compression="jpeg",
                compressionargs={"level": 88},
                photometric="rgb",
                metadata=None,
            )
            level //= 4
    return path


def main(args: argparse.Namespace) -> None:
    """Run the rounds and print the medians."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    sizes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = demo_slides(folder, args.slides, args.slide_px) if args.rounds else folder
        most = str(40 * (args.slide_px // 1024) ** 2)  # tiles: as many of each slide's area as the demo takes
        for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
            for workers in seconds:
                took, peak = run_tiles(slides, folder / "out", *DEMO, "--max_tiles", most, "--workers", str(workers))
                seconds[workers].append(round(took, 1))
                print(f"{workers} workers: {took:.1f} s, peak {peak:.0f} MB, load {os.getloadavg()[0]:.1f}", flush=True)
        for side in args.sides:
            slide = big_slide(folder / f"side{side}.svs", side)
            took, peak = run_tiles(slide, folder / "out", "--max_tiles", "0", "--workers", "1")
            store = TileStore(folder / "out" / slide.stem)
            size = {"side": side, "tiles": len(store), "seconds": round(took, 1), "peak_mb": round(peak)}
            size["bytes_per_tile"] = round(store.path.stat().st_size / len(store))
            sizes.append(size)
            print(size, flush=True)
    result = {
        "benchmark": "many_slides",
        "slides": args.slides,
        "slide_px": args.slide_px,
        "n": args.rounds,
        "seconds": seconds,
        "sizes": sizes,
    }
    if args.rounds:
        result["ratio"] = round(statistics.median(seconds[2]) / statistics.median(seconds[1]), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=200, help="of the demo (%(default)s)")
    parser.add_argument("--slide_px", type=int, default=1024, help="of their sides (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="0: memory only (%(default)s)")
    parser.add_argument("--sides", type=int, nargs="*", default=[4096, 32768], help="(%(default)s)")
    main(parser.parse_args())
