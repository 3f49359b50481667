"""Tiles per second of `prepare_data.py tiles`, against the published extractor and plain loops over three readers.

    python benchmarks/tiles.py [--side 20000] [--rounds 3] [--sides published ours_published ours_default ...]

All cut the same synthetic Aperio slide (20,000 x 20,000 pixels, 0.5 um per pixel, levels 1, 4, 16, JPEG tiles of 256
px, about 45 % tissue) into all its tiles of 256 px, each in a process of its own on one core with one thread; then
again as many at a time as there are cores. Imports are not counted.

published       the published extractor, re-stated (benchmarks/published_tiles.py), with LMDB and lz4, not pickled
ours_published  `--criteria published`: the same patches, as JPEG in a store with checksums and fsync
ours_default    our own criteria: tissue, stain, damage, pen and sharpness of every tile, likewise
openslide, tiffslide, fastslide  a plain loop, as scripts have it: Otsu's threshold on an overview's saturation, one
                read_region and one JPEG file per tile; no checks, no checksums, no fsync

The ratio per core is of processor time (user and system) per tile, medians of the rounds, which take turns: on a
machine that does other work too, wall clock says little. The last line is JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from turns import peak_mb  # noqa: E402

TILE = 256
SIDES = ("published", "ours_published", "ours_default", "openslide", "tiffslide", "fastslide")
NEEDS = {"published": ("lmdb", "lz4"), "tiffslide": ("tiffslide",), "fastslide": ("fastslide",)}
OVERVIEW = 32  # level-0 pixels per pixel of the plain loops' overview


# ---- The sides: path of the slide, folder to write to -> number of tiles ----


def published() -> Callable[[Path, Path], int]:
    """Return the published extractor."""
    from published_tiles import extract

    return lambda slide, out: extract(slide, out, TILE, 10**5)


def ours(criteria: str) -> Callable[[Path, Path], int]:
    """Return our extraction by one slide, in this process."""
    import imagecodecs  # noqa: F401 (what is imported where it is used is not counted either)
    import openslide  # noqa: F401
    import skimage.exposure  # noqa: F401
    import tifffile  # noqa: F401

    from datasets.extraction import cut_slide
    from datasets.job import Job, TileSettings

    def cut(slide: Path, out: Path) -> int:
        outcome = cut_slide(Job(slide, out, TileSettings(tile_size=TILE, max_tiles=0, criteria=criteria)))
        if outcome.status != "cut":
            raise SystemExit(outcome.reason)
        return outcome.tiles

    return cut


def plain(open_slide: Callable[[str], Any], read: Callable[[Any, int, int], np.ndarray]) -> Callable[[Path, Path], int]:
    """Return a bare loop over a reader's `read(slide, x, y)`, which gives uint8 RGB (TILE, TILE, 3)."""
    from skimage.filters import threshold_otsu

    def cut(path: Path, out: Path) -> int:
        out.mkdir()
        slide, count = open_slide(str(path)), 0
        width, height = slide.dimensions
        level = len(slide.level_dimensions) - 1
        small = Image.fromarray(read_level(slide, level)).resize((width // OVERVIEW, height // OVERVIEW)).convert("HSV")
        saturation = np.asarray(small)[..., 1]
        mask = saturation > threshold_otsu(saturation)
        side = TILE // OVERVIEW
        for y in range(0, height - TILE + 1, TILE):
            for x in range(0, width - TILE + 1, TILE):
                if mask[y // OVERVIEW :, x // OVERVIEW :][:side, :side].mean() >= 0.5:
                    Image.fromarray(read(slide, x, y)).save(out / f"{x}_{y}.jpg", quality=95, subsampling=0)
                    count += 1
        return count

    return cut


def read_level(slide: Any, level: int) -> np.ndarray:
    """Return a whole level as uint8 RGB, from any of the three readers."""
    return as_rgb(slide.read_region((0, 0), level, tuple(slide.level_dimensions[level])))


def as_rgb(region: Any) -> np.ndarray:
    """Return what a reader gives (a Pillow image, or one with .numpy()) as uint8 RGB."""
    array = region.numpy() if hasattr(region, "numpy") else np.asarray(region)
    return np.ascontiguousarray(array[..., :3])


def side_named(name: str) -> Callable[[Path, Path], int]:
    """Import what a side needs and return it."""
    if name == "published":
        return published()
    if name.startswith("ours_"):
        return ours(name.removeprefix("ours_"))

    def read(slide: Any, x: int, y: int) -> np.ndarray:
        return as_rgb(slide.read_region((x, y), 0, (TILE, TILE)))

    if name == "openslide":
        from openslide import OpenSlide

        return plain(OpenSlide, read)
    if name == "tiffslide":
        from tiffslide import TiffSlide

        return plain(TiffSlide, read)
    from fastslide import FastSlide

    return plain(FastSlide.from_file_path, read)


# ---- Measuring ----


def run_side(name: str, slide: Path, out: Path) -> None:
    """Cut once and print what it took, as JSON."""
    cut = side_named(name)
    wall, used = time.perf_counter(), time.process_time()
    tiles = cut(slide, out)
    used, wall = time.process_time() - used, time.perf_counter() - wall
    print(json.dumps({"tiles": tiles, "cpu_s": used, "wall_s": wall, "peak_mb": peak_mb()}))


def start(name: str, slide: Path, out: Path, core: int) -> subprocess.Popen:
    """Start a side in a process of its own, on one core, with one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--only", name, str(slide), str(out)]
    return subprocess.Popen(
        command,
        env=os.environ | threads,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def answers(processes: list[subprocess.Popen]) -> list[dict[str, float]]:
    """Return what the processes print as their last line; SystemExit where one fails."""
    found = []
    for process in processes:
        text, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(process.args)}: exit status {process.returncode}")
        found.append(json.loads(text.splitlines()[-1]))
    return found


def lacking(name: str) -> str | None:
    """Return which package a side needs and has not, None where it has all."""
    return next((package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None), None)


def main(args: argparse.Namespace) -> None:
    """Make the slide, let the sides take turns, print a line per side and the JSON."""
    cores = sorted(os.sched_getaffinity(0))
    skipped = {name: f"{package} is not installed" for name in args.sides if (package := lacking(name))}
    names = [name for name in args.sides if name not in skipped]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    together: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        from big_slide import write_big_slide

        slide = write_big_slide(Path(folder) / "big.svs", args.side)
        print(f"{slide.stat().st_size / 1e6:.0f} MB slide", flush=True)
        for number in range(args.rounds):
            for name in names:
                out = Path(folder) / f"{name}{number}"
                runs[name] += answers([start(name, slide, out, cores[0])])
                print(name, runs[name][-1], flush=True)
                if not args.one_core:
                    found = answers([start(name, slide, Path(f"{out}_{core}"), core) for core in cores])
                    together[name].append(sum(f["tiles"] for f in found) / max(f["wall_s"] for f in found))
                subprocess.run(["rm", "-rf", *map(str, Path(folder).glob(f"{name}{number}*"))], check=True)
    result = {"benchmark": "tiles", "side": args.side, "n": args.rounds, "cores": len(cores), "skipped": skipped}
    for name in names:
        middle = {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
        result[name] = {
            "tiles": int(middle["tiles"]),
            "cpu_ms_per_tile": round(1e3 * middle["cpu_s"] / middle["tiles"], 3),
            "tiles_per_s_one_core": round(middle["tiles"] / middle["wall_s"], 1),
            "tiles_per_s_all_cores": round(statistics.median(together[name]), 1) if together[name] else None,
            "peak_mb": round(middle["peak_mb"]),
        }
    if "published" in names:
        base = result["published"]["cpu_ms_per_tile"]
        result["times_published_per_core"] = {n: round(base / result[n]["cpu_ms_per_tile"], 2) for n in names}
        if "ours_published" in names and result["ours_published"]["tiles"] != result["published"]["tiles"]:
            raise SystemExit(f"not the same tiles: {result}")
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20000, help="pixels of the slide, a multiple of 16 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="(all)")
    parser.add_argument("--one_core", action="store_true", help="leave out the runs on all cores")
    parser.add_argument("--folder", help="where the slide and the tiles are kept meanwhile; default: the system's")
    parser.add_argument("--only", nargs=3, metavar=("SIDE", "SLIDE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        run_side(given.only[0], *map(Path, given.only[1:]))
    else:
        main(given)
