"""Time and memory against the number of tiles, the number of genes and the side of the images.

    python benchmarks/scaling.py [--series tiles genes side] [--quick]

Each point is a process of its own, so that its peak memory is its own, with one thread, so that its time is work and
not waiting. What is measured is the toolkit's own code:
  tiles   opening a cohort of 1,000 to 100,000 tiles (64 px, 500 a slide) with its digest, taking training batches from
          the disk (cache none) and from memory (cache ram), Fréchet and kernel distance of so many features
  genes   reading a table of 500 samples and 2,000 to 60,000 genes (.h5ad; CSV without and with its cache), scaling it,
          one step of a beta-VAE of fixed widths
  side    one training step of both architectures, 8 tiles of 64 to 512 px, few channels, penalty in every step
For each the slope of log time against log n is fitted by least squares: 1 is linear, 0 constant; for the side n is the
number of pixels. Both times are fitted: by the clock, which other programs slow, and of the processor; slope_end is
that of the processor's time between the last two numbers, where what is constant weighs least. Memory: the process's
peak (VmHWM), and how much of it each further tile, gene or pixel takes. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from steps import GANStep, gan_settings, timed

from benchmarks.turns import cpu, peak_mb
from common.config import BetaVAESettings
from datasets.cohort import Cohort, open_cohort
from datasets.expression import read_expression, write_expression
from datasets.table_cache import cache_path
from datasets.tiles import write_store
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance
from models.betavae import BetaVAE, beta_vae_loss
from models.expression_scaler import ExpressionScaler
from sources.batches import Batches

SIDE, PER_SLIDE, BATCH = 64, 500, 32  # of the stored tiles, px; tiles a slide; tiles a batch
DIM = 512  # length of the made-up features
SAMPLES, WIDTH = 500, 256  # rows of the tables; width of the beta-VAE
CPU = torch.device("cpu")
NUMBERS = {
    "tiles": ([1_000, 10_000, 100_000], [1_000, 4_000]),  # in full, with --quick
    "genes": ([2_000, 10_000, 20_000, 40_000, 60_000], [2_000, 8_000]),
    "side": ([64, 128, 256, 512], [32, 64]),
}
Seconds = tuple[float, float, int]  # by the clock, of the processor; how many rounds


# ---- What is measured: each task gets the folder of the made-up data and n ----


def open_tiles(folder: Path, n: int) -> Seconds:
    """Open the cohort of n tiles, with the digest that a training asks for."""
    from histopathology_gan import cohort_digest  # here, as below: each point would wait for what it does not need

    return timed(lambda: cohort_digest(cohort_of(folder, n)))


def batches_from_disk(folder: Path, n: int) -> Seconds:
    """Take training batches, each tile read when needed; seconds per batch."""
    return per_batch(cohort_of(folder, n), "none")


def batches_from_memory(folder: Path, n: int) -> Seconds:
    """Take training batches once every tile has been read and is kept; seconds per batch."""
    return per_batch(cohort_of(folder, n), "ram")


def frechet(folder: Path, n: int) -> Seconds:
    """Return the time of the Fréchet distance of n against n features."""
    x, y = features(n, 0), features(n, 1)
    return timed(lambda: frechet_distance(x, y), least=1)


def kernel(folder: Path, n: int) -> Seconds:
    """Return the time of the kernel distance of n against n features: above 1,000 the mean of 100 subsets."""
    x, y = features(n, 0), features(n, 1)
    return timed(lambda: kernel_distance(x, y), least=1)


def read_table(folder: Path, n: int, suffix: str, cached: bool = True) -> Seconds:
    """Read the table of n genes."""
    path = folder / f"genes_{n}{suffix}"

    def read() -> None:
        if not cached:
            cache_path(path).unlink(missing_ok=True)
        read_expression(path)

    return timed(read)


def scale(folder: Path, n: int) -> Seconds:
    """Fit the scaler on random profiles and transform them."""
    values = torch.rand(SAMPLES, n) * 100
    return timed(lambda: ExpressionScaler.fit_transform(values)[0].transform(values[:100]))


def vae_step(folder: Path, n: int) -> Seconds:
    """Take training steps of a beta-VAE with layers of WIDTH, 128 profiles a batch."""
    paper = BetaVAESettings()
    model = BetaVAE(n, [WIDTH, WIDTH], [WIDTH], WIDTH).train()
    adam = torch.optim.Adam(model.parameters(), lr=paper.lr, fused=True)
    x = torch.randn(paper.batch_size, n)

    def step() -> None:
        loss = beta_vae_loss(x, *model(x), beta=paper.beta)["total"]
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    step()
    return timed(step)


def gan_step(folder: Path, side: int, gan_type: str) -> Seconds:
    """Take training steps on 8 tiles of `side` px; seconds per tile."""
    loss = "rpgan" if gan_type == "residual" else "wgan"
    sizes = {"img_size": side, "encoding_dims": 128, "step_channels": 4}
    cfg = gan_settings(gan_type=gan_type, loss_type=loss, penalty_every=1, **sizes)
    step = GANStep(cfg, CPU)
    step(0)
    wall, processor, rounds = timed(lambda: step(1))
    return wall / cfg.batch_size, processor / cfg.batch_size, rounds


TASKS: dict[str, dict[str, Callable[[Path, int], Seconds]]] = {
    "tiles": {
        "open the cohort": open_tiles,
        "a batch, cache none": batches_from_disk,
        "a batch, cache ram": batches_from_memory,
        "Frechet distance": frechet,
        "kernel distance": kernel,
    },
    "genes": {
        "read .h5ad": partial(read_table, suffix=".h5ad"),
        "read .csv": partial(read_table, suffix=".csv", cached=False),
        "read .csv, cached": partial(read_table, suffix=".csv"),
        "scale": scale,
        "beta-VAE step": vae_step,
    },
    "side": {
        "residual, a tile": partial(gan_step, gan_type="residual"),
        "DCGAN, a tile": partial(gan_step, gan_type="dcgan"),
    },
}


# ---- The made-up data ----


def make_tiles(folder: Path, n: int) -> None:
    """Write n tiles in stores of PER_SLIDE: one slide per donor, grey noise on pink."""
    rng = np.random.default_rng(0)
    images = rng.normal((214, 150, 190), 20, (64, SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    for slide in range(n // PER_SLIDE):
        tiles = ((SIDE * i, 0, 1.0, images[(slide + i) % len(images)]) for i in range(PER_SLIDE))
        write_store(folder, f"GTEX-{slide:05d}-0125", tiles, mpp=0.5, tile_size=SIDE)


def make_data(folder: Path, series: str, numbers: list[int]) -> None:
    """Write what the tasks of a series read; smaller cohorts share the files of the largest."""
    if series == "tiles":
        whole = folder / f"tiles_{max(numbers)}"
        make_tiles(whole, max(numbers))
        for n in numbers[:-1]:
            (folder / f"tiles_{n}").mkdir()
            for path in sorted(whole.iterdir())[: 2 * n // PER_SLIDE]:  # .json and .tar of a slide
                (folder / f"tiles_{n}" / path.name).hardlink_to(path)
    elif series == "genes":
        from expression import make_table

        for n in numbers:
            table = make_table(SAMPLES, n)
            for suffix in (".csv", ".h5ad"):
                write_expression(table, folder / f"genes_{n}{suffix}")


def features(n: int, seed: int) -> np.ndarray:
    """Return made-up features (n, DIM) float32."""
    return np.random.default_rng(seed).standard_normal((n, DIM), np.float32)


def cohort_of(folder: Path, n: int) -> Cohort:
    """Open the cohort of n tiles, all splits."""
    cfg = gan_settings(patch_data_path=[str(folder / f"tiles_{n}")], img_size=SIDE)
    return open_cohort(cfg, None, need_expression=False)


def per_batch(cohort: Cohort, cache: str, batches: int = 25) -> Seconds:
    """Return the times of a batch; with cache ram after one pass over all tiles."""
    cfg = gan_settings(img_size=SIDE, batch_size=BATCH, cache=cache, loss_type="wgan")
    source, step = Batches(cohort, None, cfg, CPU, 0, 1_000_000), 0

    def take(count: int) -> None:
        nonlocal step
        for _ in range(count):
            source.take(step := step + 1, 0, SIDE)

    take(-(-len(cohort.tiles) // BATCH) if cache == "ram" else batches)
    wall, processor, rounds = timed(partial(take, batches))
    return wall / batches, processor / batches, rounds


# ---- Points, tables, slopes ----


def point(folder: Path, series: str, task: str, n: int) -> dict[str, float]:
    """Measure one point in a process of its own."""
    code = [sys.executable, __file__, "--point", str(folder), series, task, str(n)]
    done = subprocess.run(code, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_point(folder: str, series: str, task: str, n: str) -> None:
    """Print what `point` reads: times, and the process's peak memory before and after."""
    torch.set_num_threads(1)
    before = peak_mb()
    wall, processor, rounds = TASKS[series][task](Path(folder), int(n))
    print(json.dumps({"s": wall, "cpu_s": processor, "rounds": rounds, "start_mb": before, "peak_mb": peak_mb()}))


def slope(numbers: list[int], values: list[float]) -> float:
    """Return the slope of log value against log number, by least squares."""
    return round(float(np.polyfit(np.log(numbers), np.log(np.maximum(values, 1e-9)), 1)[0]), 3)


def measure_series(folder: Path, series: str, numbers: list[int]) -> dict[str, dict]:
    """Measure every task of a series, print its table, return the fits by task."""
    start = time.perf_counter()
    make_data(folder, series, numbers)
    print(f"\n{series}: data made in {time.perf_counter() - start:.0f} s", flush=True)
    units = [n**2 for n in numbers] if series == "side" else numbers  # pixels
    fits = {}
    for task in TASKS[series]:
        print(f"{task:22} {series:>8} {'seconds':>10} {'processor':>10} {'rounds':>7} {'peak MB':>9} {'of it own':>10}")
        found = []
        for n in numbers:
            found.append(p := point(folder, series, task, n))
            own = p["peak_mb"] - p["start_mb"]
            row = f"{p['s']:10.4g} {p['cpu_s']:10.4g} {p['rounds']:7d} {p['peak_mb']:9.0f} {own:10.1f}"
            print(f"{'':22} {n:8d} {row}", flush=True)
        peaks = [p["peak_mb"] for p in found]
        fits[task] = {
            "slope": slope(units, [p["s"] for p in found]),
            "slope_processor": slope(units, [p["cpu_s"] for p in found]),
            "slope_end": slope(units[-2:], [p["cpu_s"] for p in found[-2:]]),
            "peak_mb": [round(peak) for peak in peaks],
            "memory_ratio": round(peaks[-1] / peaks[0], 2),
            "bytes_each": round((peaks[-1] - peaks[0]) * 2**20 / (units[-1] - units[0])),
        }
        print(f"{'':22} {json.dumps(fits[task])}", flush=True)
    return fits


def main(args: argparse.Namespace) -> None:
    """Measure the series that were asked for; print their tables and a last line of JSON."""
    if args.point:
        measure_point(*args.point)
        return
    start = time.perf_counter()
    result: dict[str, object] = {"benchmark": "scaling", "quick": args.quick, **cpu()}
    with tempfile.TemporaryDirectory() as folder:
        for series in args.series:
            result[series] = measure_series(Path(folder), series, NUMBERS[series][args.quick])
    print(json.dumps(result | {"seconds": round(time.perf_counter() - start)}))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=TASKS, default=list(TASKS), help="(all)")
    parser.add_argument("--quick", action="store_true", help="two small numbers of each")
    parser.add_argument("--point", nargs=4, metavar=("FOLDER", "SERIES", "TASK", "N"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args())
