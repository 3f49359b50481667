"""Time to read and scale an expression table: ours, cold and cached, against pandas and scikit-learn.

    python benchmarks/expression.py [--samples 1700] [--genes 19198] [--repeats 5]

Peer: pandas.read_csv, the logarithm of each column (zeros left at 0, as published), StandardScaler. Ours:
read_expression without its cache (it also writes the cache) and with it, then ExpressionScaler.fit_transform (log1p,
z-scores). The table is made up: log-normal values, the low ones 0, four significant digits. The variants take turns;
the numbers are medians, in one process, with the file in the system's page cache. Run it on an idle machine: threads
that wait for one another suffer most from company; the processor's time beside the clock's shows it (OMP_NUM_THREADS=1
is the cure). The last line is JSON: `ratio` cold, `ratio_cached` with the cache.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.expression import ExpressionTable, read_expression, write_expression
from datasets.table_cache import cache_path
from models.expression_scaler import ExpressionScaler


def make_table(n_samples: int, n_genes: int) -> ExpressionTable:
    """Return a made-up table of the paper's size."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(1, 2, n_genes) + rng.normal(0, 0.5, (n_samples, n_genes)))
    values = np.where(values < 0.5, 0, values)
    digits = 10.0 ** (3 - np.floor(np.log10(np.maximum(values, 1e-9))))
    values = (np.round(values * digits) / digits).astype(np.float32)
    names = [f"GTEX-{i:05d}-0625.svs" for i in range(n_samples)]
    donors = [name[:10] for name in names]
    obs = pd.DataFrame({"wsi_file_name": names, "donor": donors, "tissue": "lung"}, index=names, dtype=object)
    return ExpressionTable(values, [f"ENSG{i:011d}.1" for i in range(n_genes)], obs)


def peer(path: Path) -> np.ndarray:
    """Read and scale with pandas and scikit-learn, column by column as published."""
    frame = pd.read_csv(path)
    genes = [name for name in frame.columns if name.startswith("rna_")]
    logged = frame[genes].apply(lambda column: np.log(column.where(column > 0, 1.0)))
    return StandardScaler().fit_transform(logged.to_numpy())


def ours(path: Path) -> np.ndarray:
    """Read and scale with this toolkit."""
    values = torch.from_numpy(read_expression(path).values)
    return ExpressionScaler.fit_transform(values, out=values)[1].numpy()


def cold(path: Path) -> np.ndarray:
    """Read and scale with this toolkit, without the cache."""
    cache_path(path).unlink(missing_ok=True)
    return ours(path)


def seconds(task: Callable[[Path], np.ndarray], path: Path) -> tuple[float, float]:
    """Return how long `task` takes: by the clock, and in processor time of all threads."""
    start, start_cpu = time.perf_counter(), time.process_time()
    task(path)
    return time.perf_counter() - start, time.process_time() - start_cpu


def main(args: argparse.Namespace) -> None:
    """Run the variants in turns and print their medians."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_expression(make_table(args.samples, args.genes), path)
        time.sleep(2.5)  # a file that changed a moment ago is not trusted by its time
        scaled = ours(path)
        values = read_expression(path).values
        expected = StandardScaler().fit_transform(np.log1p(values.astype(np.float64)))
        worst = float(np.abs(scaled - expected).max())
        del scaled, values, expected
        variants = {"pandas": peer, "cold": cold, "cached": ours}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in tqdm(range(args.repeats), desc="rounds", disable=None):
            for name, task in variants.items():
                times[name].append(seconds(task, path))
        size = path.stat().st_size / 1e6
    print(f"{args.samples} x {args.genes}, {size:.0f} MB of CSV; largest difference of z-scores {worst:.1e}")
    clock = {name: median(wall for wall, _ in values) for name, values in times.items()}
    for name, values in times.items():
        each = ", ".join(f"{wall:.3f}" for wall, _ in values)
        print(f"{name:8s} median {clock[name]:7.3f} s, processor {median(cpu for _, cpu in values):7.3f} s; {each}")
    result = {
        "benchmark": "expression",
        "peer": "pandas.read_csv + per-column log + StandardScaler",
        "ratio": round(clock["pandas"] / clock["cold"], 2),
        "ratio_cached": round(clock["pandas"] / clock["cached"], 1),
        "n": args.repeats,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1700)
    parser.add_argument("--genes", type=int, default=19198)
    parser.add_argument("--repeats", type=int, default=5)
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args())
