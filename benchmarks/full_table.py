"""GTEx at full size: a GCT.gz of 56,200 genes x 17,382 samples becomes an .h5ad of the protein-coding genes.

    python benchmarks/full_table.py [--genes 56200] [--samples 17382] [--wanted protein_coding_genes.csv] [--folder DIR]

Makes the matrix first, unless --folder holds it already: made-up TPM, log-normal per gene with zeros, four significant
digits as in the archive, gzip level 1 (some 6 GB of text; the folder needs 5 GB). Then, each in a process of its own
whose peak memory (VmHWM) is watched:
  prepare   `prepare_data.py expression`, the command as a user types it
  train     what the beta-VAE's training does with the table: it reads it, splits it, fits the scaler, takes one step of
            a small network and writes last.pt and best.pt
Where the machine is shared, the processor's seconds tell more than the clock's. The last line is JSON.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import cpu, run_watched
from datasets.gene_lists import read_gene_list

ROOT = Path(__file__).resolve().parent.parent
LOWEST, DECADES, PER_DECADE = 0.004, 7, 9000  # of the values that are written; 9,000 numbers of four digits a decade
SPREAD = 0.5  # sd of log10 TPM of a gene over samples
CODING, OTHER = (0.7, 0.9), (-1.6, 1.0)  # mean and sd of log10 TPM over genes; about half of all values are then 0
DONOR_SAMPLES = 18  # samples of one donor


def make_matrix(path: Path, n_genes: int, n_samples: int, wanted: list[str]) -> int:
    """Write a GCT 1.2 of made-up TPM, `wanted` spread evenly among other genes; return the bytes of its text."""
    rng = np.random.default_rng(0)
    numbers = LOWEST * 10 ** (np.arange(DECADES * PER_DECADE) / PER_DECADE)
    tokens = pa.array(["\t0", *(f"\t{x:.4g}" for x in numbers)])  # each row's text is taken from these: no formatting
    coding = np.zeros(n_genes, bool)
    coding[np.linspace(0, n_genes - 1, len(wanted)).astype(int)] = True
    level = np.where(coding, rng.normal(*CODING, n_genes), rng.normal(*OTHER, n_genes))
    expected = 10**level * np.exp((SPREAD * np.log(10)) ** 2 / 2)
    level += 6 - np.log10(expected.sum())  # profiles sum to about one million
    names = iter(wanted)
    head = [f"GTEX-{i // DONOR_SAMPLES:05d}-{i % DONOR_SAMPLES:02d}26-SM-{i:05d}" for i in range(n_samples)]
    size = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        size += file.write(f"#1.2\n{n_genes}\t{n_samples}\nName\tDescription\t{chr(9).join(head)}\n".encode())
        for gene in tqdm(range(n_genes), desc="making the matrix", unit="gene", mininterval=5, disable=None):
            name = next(names) if coding[gene] else f"ENSG9{gene:010d}.1"
            place = (level[gene] - np.log10(LOWEST)) + SPREAD * rng.standard_normal(n_samples, np.float32)
            place = np.clip(place * PER_DECADE + 1, 0, DECADES * PER_DECADE).astype(np.int32)  # 0: below LOWEST
            text = tokens.take(pa.array(place)).buffers()[2]
            size += file.write(b"%s\tG%d%s\n" % (name.encode(), gene, text.to_pybytes()))
    return size


def watched(command: list[str], **options: Any) -> dict[str, float]:
    """Run a program; return its seconds by the clock and of the processor, and its peak memory in GB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, peak = run_watched(command, **options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": round(seconds, 1), "processor_s": round(processor, 1), "peak_gb": round(peak / 1024, 2)}


def train_once(folder: str) -> None:
    """Take one training step on the table in `folder`, as betaVAE_training.py would."""
    import betaVAE_training
    from common.config import BetaVAESettings, settings_dict
    from common.run import Run, pick_device
    from datasets.expression import read_cohort_tables

    sizes = {"encoder_sizes": [64], "decoder_sizes": [64], "latent_dim": 16, "max_steps": 1}
    cfg = BetaVAESettings(path_csv=[f"{folder}/table.h5ad"], save_dir=f"{folder}/run", device="cpu", **sizes)
    table = read_cohort_tables(cfg)
    part = {s: table.rows((table.obs["split"] == s).to_numpy()) for s in betaVAE_training.FEWEST_DONORS}
    with Run(cfg.save_dir, settings_dict(cfg), True, settings_dict(BetaVAESettings())) as run:
        betaVAE_training.fit(run, table, part, cfg, pick_device("cpu"))


def main(args: argparse.Namespace) -> None:
    """Make the matrix, prepare the table, train on it; print what each took and a last line of JSON."""
    if args.train:
        train_once(args.train)
        return
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        matrix = Path(args.folder or temporary, f"gene_tpm_{args.genes}x{args.samples}.gct.gz")
        listed, text_bytes = matrix.with_suffix(".csv"), None
        if not matrix.exists():
            known = read_gene_list(args.wanted).genes if args.wanted else [f"ENSG{i:011d}.1" for i in range(19_198)]
            wanted = known[: round(args.genes * 19_198 / 56_200)]
            start = time.perf_counter()
            text_bytes = make_matrix(matrix, args.genes, args.samples, wanted)
            listed.write_text("\n".join(["Gene", *(f"rna_{gene}" for gene in wanted)]) + "\n")
            print(f"{matrix}: {text_bytes / 1e9:.2f} GB of text, made in {time.perf_counter() - start:.0f} s")
        table = Path(temporary, "table.h5ad")
        line = [sys.executable, "prepare_data.py", "expression", "--input", matrix, "--genes", listed, "--out", table]
        load = os.getloadavg()[0]
        prepare = watched([str(word) for word in line], cwd=ROOT)
        print(f"prepare: {prepare}, {table.stat().st_size / 1e9:.2f} GB written")
        train = watched([sys.executable, __file__, "--train", temporary], stdout=subprocess.DEVNULL)
        print(f"train: {train}")
        gzip_bytes = matrix.stat().st_size
    result = {"benchmark": "full_table", **cpu(), "genes": args.genes, "samples": args.samples}
    result |= {
        "text_bytes": text_bytes,
        "gzip_bytes": gzip_bytes,
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
    }
    result |= {"prepare": prepare, "train": train}
    print(json.dumps(result))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=56_200)
    parser.add_argument("--samples", type=int, default=17_382)
    parser.add_argument("--wanted", help="CSV with a column Gene: the protein-coding genes; default: made-up ids")
    parser.add_argument("--folder", help="where the matrix is kept; default: a temporary folder, deleted at the end")
    parser.add_argument("--train", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args())
