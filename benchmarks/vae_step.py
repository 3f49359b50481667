"""One training epoch of the beta-VAE at the paper's size: memory, seconds per step, and the ratio to a plain loop.

    python benchmarks/vae_step.py --data ../shared/data

Data: 1,700 columns of W @ H, a rank-20 factorisation of the GTEx v6 counts, on the paper's list of 19,198 genes; genes
that it lacks are copies of others, each with its samples rolled. Two measurements:
  epoch   betaVAE_training.py itself, one epoch with its validation, both checkpoints and the test metrics, in a process
          of its own: peak resident memory and wall time (--steps_only leaves it out)
  step    forward, loss, backward, update of one batch of 128: ours (fused Adam, gradients freed) against a plain torch
          loop (torch's default Adam, gradients zeroed in place); same network, steps interleaved, medians
The last line is JSON; ratio: seconds of the plain step over ours.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from common.config import BetaVAESettings  # noqa: E402
from datasets.expression import ExpressionTable, write_expression  # noqa: E402
from models.betavae import BetaVAE, beta_vae_loss  # noqa: E402
from models.expression_scaler import ExpressionScaler  # noqa: E402

SAMPLES = 1700
PAPER = BetaVAESettings()


def paper_table(data: Path) -> ExpressionTable:
    """Return SAMPLES x 19,198 TPM-like values, float32."""
    factors = np.load(data / "expression" / "gtex_v6_nmf_k20.npz", allow_pickle=False)
    listed = [line[4:] for line in (data / "gtex_ids" / "protein_coding_genes.csv").read_text().split()[1:]]
    row_of = {str(g).split(".")[0]: i for i, g in enumerate(factors["genes"])}
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(factors["H"].shape[1])[:SAMPLES])
    counts = factors["H"][:, chosen].T @ factors["W"].T  # (samples, genes of the factorisation)
    rows = np.array([row_of.get(g.split(".")[0], -1) for g in listed])
    absent = rows < 0
    rows[absent] = rng.choice(rows[~absent], absent.sum())
    values = counts[:, rows].clip(min=0)
    for column in np.flatnonzero(absent):
        values[:, column] = np.roll(values[:, column], rng.integers(1, SAMPLES))
    values *= 1e6 / values.sum(1, keepdims=True)
    print(f"{SAMPLES} x {len(listed)}: {(~absent).sum()} genes from the factorisation, {absent.sum()} resampled")
    names = [f"sample-{i:05d}" for i in chosen]
    tissues = ["tissue_" + "abcde"[i % 5] for i in range(SAMPLES)]
    obs = pd.DataFrame({"wsi_file_name": "", "donor": names, "tissue": tissues}, index=names)
    return ExpressionTable(np.ascontiguousarray(values, np.float32), listed, obs, "TPM", "W @ H")


def measure_epoch(table: ExpressionTable) -> float:
    """Run the command for one epoch; print its wall time; return its peak resident memory, GB."""
    with tempfile.TemporaryDirectory() as folder:
        write_expression(table, Path(folder) / "table.h5ad")
        config = {"path_csv": [f"{folder}/table.h5ad"], "rna_features": 19198, "save_dir": f"{folder}/run"}
        (Path(folder) / "c.json").write_text(json.dumps(config | {"num_epochs": 1, "device": "cpu", "log_interval": 1}))
        start = time.perf_counter()
        command = [sys.executable, "betaVAE_training.py", "--config", f"{folder}/c.json"]
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        sizes = {p.name: p.stat().st_size / 1e9 for p in (Path(folder) / "run").glob("*.pt")}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"epoch: {seconds:.0f} s with validation, {sizes} GB saved, and test; peak memory {peak:.2f} GB")
    return peak


def measure_step(table: ExpressionTable, repeats: int) -> tuple[float, float]:
    """Return median seconds of our step and of the plain one."""
    torch.manual_seed(0)
    model = BetaVAE(len(table.genes)).train()
    values = torch.from_numpy(table.values[: PAPER.batch_size])
    x = ExpressionScaler.fit(torch.from_numpy(table.values)).transform(values)
    plain = torch.optim.Adam(model.parameters(), lr=PAPER.lr)
    ours = torch.optim.Adam(model.parameters(), lr=PAPER.lr, fused=True)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(repeats + 1):  # the first of each allocates its states and is not counted
        for name, optimizer in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            loss = beta_vae_loss(x, *model(x), beta=PAPER.beta)["total"]
            optimizer.zero_grad(set_to_none=name == "ours")
            loss.backward()
            optimizer.step()
            loss.item()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    for name, values_ in seconds.items():
        print(f"step, {name}: median {statistics.median(values_):.2f} s of {[round(v, 2) for v in values_]}")
    return statistics.median(seconds["ours"]), statistics.median(seconds["plain"])


def main() -> int:
    """Measure both; print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the folder of real data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps_only", action="store_true", help="leave the epoch out")
    args = parser.parse_args()
    table = paper_table(args.data)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    peak = None if args.steps_only else measure_epoch(table)
    ours, plain = measure_step(table, args.repeats)
    result = {"benchmark": "vae_step", "peer": "plain torch loop", "ratio": round(plain / ours, 3), "n": args.repeats}
    result |= {"peak_rss_gb": peak and round(peak, 2), "seconds_per_step": round(ours, 3)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
