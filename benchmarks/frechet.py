"""Fréchet distance of 600 against 600 features of 2048 dimensions: Gram form against the square root of a matrix.

    python benchmarks/frechet.py            # 5 rounds; most of the time is the peer's

Peer: scipy.linalg.sqrtm on the product of the covariances, as pytorch-fid, torch-fidelity and edm2 call it; its
covariances are made beforehand and not counted. The two take turns in one process, with the same threads. The last
line is JSON: ratio of the medians, n rounds, peak memory of the process in GB.
"""

import argparse
import json
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metrics.frechet import frechet_distance, statistics_of


def features(n: int, dim: int, seed: int) -> np.ndarray:
    """Return (n, dim) float32 like Inception's: positive, sparse, of decaying spread, shifted a little by the seed."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.05, dim)
    return np.maximum(rng.normal(0.1 * seed, 1, (n, dim)) * spread, 0).astype(np.float32)


def by_sqrtm(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Return the distance by the square root of the product."""
    from scipy import linalg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the product is singular: n < dim
        root = linalg.sqrtm(sigma1 @ sigma2)
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root).real)


def main() -> None:
    """Time both in turns and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=600)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    x, y = features(args.tiles, args.dim, 1), features(args.tiles, args.dim, 2)
    known = (*statistics_of(x), *statistics_of(y))
    frechet_distance(x[:10], y[:10])  # warm up

    ours, theirs = [], []
    for k in range(args.rounds):
        start = time.perf_counter()
        value = frechet_distance(x, y)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = by_sqrtm(*known)
        theirs.append(time.perf_counter() - start)
        print(f"round {k + 1}: ours {ours[-1]:.3f} s, sqrtm {theirs[-1]:.2f} s", flush=True)
    difference = abs(value / expected - 1)
    print(f"value {value:.8g}, by sqrtm {expected:.8g}: relative difference {difference:.1e}")
    if difference > 1e-3:
        sys.exit("the values differ")
    a, b = statistics.median(ours), statistics.median(theirs)
    result = {
        "benchmark": f"frechet {args.tiles}x{args.dim}",
        "peer": "scipy.linalg.sqrtm",
        "ratio": round(b / a, 1),
        "n": args.rounds,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "seconds": round(a, 4),
        "peer_seconds": round(b, 3),
        "relative_difference": float(f"{difference:.2g}"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
