"""Tiles per second of `prepare_data.py tiles`, against a plain OpenSlide loop.

    python benchmarks/tiles.py [--side 6144] [--rounds 5]

Both cut the same slide (synthetic Aperio SVS at 0.5 um per pixel, tissue in a disc, 256 px tiles) in one process and
write JPEGs of quality 95. The plain loop is what scripts commonly do, and does less: Otsu's threshold on a thumbnail's
saturation, read_region per grid cell, Pillow, one file per tile; no checks of blur or damage, no checksums, no fsync.
Rounds are interleaved; the ratio is ours / plain in tiles per second, medians. The last line is JSON.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide
from scipy import ndimage
from skimage.filters import threshold_otsu
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datasets.demo_slides import write_svs
from datasets.extraction import Job, TileSettings, cut_slide
from datasets.tiles import TileStore
from datasets.tileset import TileSet

TILE = 256


def make_slide(path: Path, side: int) -> Path:
    """Write a slide of `side` pixels: a disc of stained texture on glass."""
    random = np.random.default_rng(0)
    grain = np.tile(
        ndimage.gaussian_filter(random.standard_normal((1024, 1024)), 1.5, mode="wrap"), (side // 1024,) * 2
    )
    image = np.full((side, side, 3), 243, np.uint8)
    y, x = np.ogrid[:side, :side]
    disc = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.45 * side) ** 2
    image[disc] = (214, 150, 190)
    image[disc & (grain > 0.2)] = (90, 60, 140)
    write_svs(path, image, 0.5, path.stem)
    return path


def ours(slide: Path, out: Path) -> int:
    """Cut the slide into a tile store; return how many tiles."""
    return cut_slide(Job(slide, out, TileSettings(tile_size=TILE, max_tiles=0))).tiles


def plain(path: Path, out: Path) -> int:
    """Cut the slide into one JPEG per tile with a bare loop; return how many tiles."""
    out.mkdir()
    slide, count = openslide.OpenSlide(path), 0
    width, height = slide.dimensions
    thumbnail = slide.get_thumbnail((width // 32, height // 32)).convert("HSV")
    saturation = np.asarray(thumbnail)[..., 1]
    mask = saturation > threshold_otsu(saturation)
    for y in range(0, height - TILE + 1, TILE):
        for x in range(0, width - TILE + 1, TILE):
            if mask[y // 32 : (y + TILE) // 32, x // 32 : (x + TILE) // 32].mean() >= 0.5:
                tile = slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB")
                tile.save(out / f"{x}_{y}.jpg", quality=95, subsampling=0)
                count += 1
    return count


def read_all(store: Path) -> float:
    """Return how many tiles a second a TileSet reads, resized to 128 px."""
    tiles = TileSet([TileStore(store)], 128)
    start = time.perf_counter()
    tiles.read(range(len(tiles)))
    return len(tiles) / (time.perf_counter() - start)


def main(args: argparse.Namespace) -> None:
    """Run the rounds and print the medians."""
    rates: dict[str, list[float]] = {"ours": [], "plain": [], "read": []}
    with tempfile.TemporaryDirectory() as folder:
        slide = make_slide(Path(folder) / "bench.svs", args.side)
        for number in tqdm(range(args.rounds), desc="rounds", disable=None):
            for name, cut in (("ours", ours), ("plain", plain)):
                start = time.perf_counter()
                count = cut(slide, Path(folder) / f"{name}{number}")
                rates[name].append(count / (time.perf_counter() - start))
            rates["read"].append(read_all(Path(folder) / f"ours{number}" / "bench.json"))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    print(f"{count} tiles; tiles per second: {medians}")
    result = {
        "benchmark": "tiles",
        "peer": "openslide plain loop",
        "ratio": round(medians["ours"] / medians["plain"], 3),
        "n": args.rounds,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "tiles_per_s": medians["ours"],
        "peer_tiles_per_s": medians["plain"],
        "read_tiles_per_s": medians["read"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6144, help="pixels of the slide, a multiple of 1024 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    main(parser.parse_args())
