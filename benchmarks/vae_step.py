"""One training epoch of the beta-VAE at the paper's size: memory, seconds per step, and the ratio to a plain loop.

    python benchmarks/vae_step.py --data ../shared/data

Data: 1,700 columns of W @ H, a rank-20 factorisation of the GTEx v6 counts, on the paper's list of 19,198 genes; genes
that it lacks are copies of others, each with its samples rolled. Two measurements:
  epoch   betaVAE_training.py itself, one epoch with its validation, both checkpoints and the test metrics, in a process
          of its own: peak resident memory and wall time (--steps_only leaves it out)
  step    forward, loss, backward, update of one batch of 128: ours (fused Adam, bf16 autocast where the
          processor has it, freed memory kept unless --plain_memory) against a plain fp32 torch loop (torch's default
          Adam and zero_grad); each in its own process, steps alternate, medians
The last line is JSON; ratio: seconds of the plain step over ours.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from benchmarks.turns import cpu, has_bf16, run_watched, serve, take_turns  # noqa: E402
from common.config import BetaVAESettings  # noqa: E402
from common.memory import keep_freed_memory  # noqa: E402
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


def measure_epoch(table: ExpressionTable, precision: str) -> float:
    """Run the command for one epoch; print its wall time; return its peak resident memory, GB."""
    with tempfile.TemporaryDirectory() as folder:
        write_expression(table, Path(folder) / "table.h5ad")
        config = {
            "precision": precision,
            "path_csv": [f"{folder}/table.h5ad"],
            "rna_features": 19198,
            "save_dir": f"{folder}/run",
        }
        (Path(folder) / "c.json").write_text(json.dumps(config | {"num_epochs": 1, "device": "cpu", "log_interval": 1}))
        command = [sys.executable, "betaVAE_training.py", "--config", f"{folder}/c.json"]
        seconds, peak_mb = run_watched(command, cwd=ROOT)
        sizes = {p.name: p.stat().st_size / 1e9 for p in (Path(folder) / "run").glob("*.pt")}
    peak = peak_mb / 1024
    print(f"epoch: {seconds:.0f} s with validation, {sizes} GB saved, and test; peak memory {peak:.2f} GB")
    return peak


def serve_step(table: ExpressionTable, name: str, bf16: bool, plain_memory: bool) -> None:
    """Do one side's steps on one batch; `ours` as betaVAE_training.py does."""
    torch.manual_seed(0)
    model = BetaVAE(len(table.genes)).train()
    values = torch.from_numpy(table.values[: PAPER.batch_size])
    x = ExpressionScaler.fit(torch.from_numpy(table.values)).transform(values)
    ours = name == "ours"
    optimizer = torch.optim.Adam(model.parameters(), lr=PAPER.lr, fused=ours or None)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=ours and bf16)
    if ours and not plain_memory:
        keep_freed_memory()

    def turn() -> dict[str, Any]:
        with autocast:
            outputs = model(x)
        loss = beta_vae_loss(x, *outputs, beta=PAPER.beta)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    serve(turn)


def main() -> int:
    """Measure both; print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the folder of real data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps_only", action="store_true", help="leave the epoch out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--plain_memory", action="store_true", help="our steps without keeping freed memory")
    parser.add_argument("--only", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    bf16 = args.precision == "bf16" or (args.precision == "auto" and has_bf16())
    torch.set_num_threads(args.threads)
    if args.only:
        with contextlib.redirect_stdout(sys.stderr):
            table = paper_table(args.data)
        serve_step(table, args.only, bf16, args.plain_memory)
        return 0

    peak = None if args.steps_only else measure_epoch(paper_table(args.data), "bf16" if bf16 else "fp32")
    answers = take_turns(["ours", "plain"], args.repeats)  # the first turn allocates the optimiser's states
    medians = {name: statistics.median(turn["seconds"] for turn in turns[1:]) for name, turns in answers.items()}
    ratio = round(medians["plain"] / medians["ours"], 3)
    result = {"benchmark": "vae_step", "peer": "plain torch loop", "ratio": ratio, "n": args.repeats}
    result |= {"peak_rss_gb_epoch": peak and round(peak, 2), "seconds_per_step": round(medians["ours"], 3)}
    result |= {f"peak_rss_gb_{name}": turns[-1]["peak_rss_gb"] for name, turns in answers.items()}
    result |= {"precision": "bf16" if bf16 else "fp32", "kept_memory": not args.plain_memory}
    result |= {"threads": args.threads, **cpu()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
