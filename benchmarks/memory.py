"""The estimate of a training's memory against what a dry run of it took, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

Made-up tiles and profiles; the networks at several sizes (--cases names some). Measured: the process's peak over what
it had before the first step, of two steps with their grid, checkpoints and the resume between. The last line is JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from benchmarks.turns import cpu  # noqa: E402
from datasets.expression import ExpressionTable, write_expression  # noqa: E402
from datasets.tiles import write_store  # noqa: E402

DONORS, TILES = 24, 16
RESIDUAL = {"gan_type": "residual", "loss_type": "rpgan", "encoding_dims": 128}
DCGAN = {"gan_type": "dcgan", "loss_type": "wgangp", "encoding_dims": 2048, "step_channels": 64}
CASES: dict[str, dict[str, Any]] = {
    "dcgan, 64 px, batch 64": DCGAN | {"img_size": 64, "batch_size": 64},
    "dcgan, 128 px, batch 16": DCGAN | {"img_size": 128, "batch_size": 16},
    "dcgan, 256 px, batch 8": DCGAN | {"img_size": 256, "batch_size": 8},
    "residual, 64 px, batch 64": RESIDUAL | {"img_size": 64, "step_channels": 32, "batch_size": 64},
    "residual, 128 px, batch 16": RESIDUAL | {"img_size": 128, "step_channels": 32, "batch_size": 16},
    "beta-VAE, 5,000 genes, 4000-2048-1024": {
        "encoder_sizes": [4000, 2048, 1024],
        "decoder_sizes": [2048, 4000],
        "latent_dim": 1024,
    },
    "beta-VAE, 19,198 genes, as in the paper": {"n_genes": 19198},
}
LINE = re.compile(r"memory ([\d.]+ [kMG]B) measured, ([\d.]+ [kMG]B) estimated")
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def write_cohort(folder: Path, side: int, genes: int) -> None:
    """Write table.h5ad and, where there is a `side` (pixels), a store of tiles for each donor."""
    rng = np.random.default_rng(0)
    names = [f"GTEX-D{i:04d}-0626" for i in range(DONORS * (1 if side else 16))]
    obs = pd.DataFrame({"wsi_file_name": [f"{n[:-1]}5.svs" for n in names]}, index=names)
    obs = obs.assign(donor=[n.rpartition("-")[0] for n in names], tissue="lung")
    values = rng.gamma(2.0, 20.0, (len(names), genes)).astype(np.float32)
    write_expression(ExpressionTable(values, [f"ENSG{i:011d}.1" for i in range(genes)], obs), folder / "table.h5ad")
    for name in obs["wsi_file_name"] if side else ():
        tiles = rng.normal((214, 150, 190), 20, (TILES, side, side, 3)).clip(0, 255).astype(np.uint8)
        rows = [(side * i, 0, 1.0, tile) for i, tile in enumerate(tiles)]
        write_store(folder / "tiles", Path(name).stem, rows, mpp=0.5, tile_size=side)


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Return bytes: what the dry run of the case estimated, and what it took."""
    case = dict(case)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, case.get("img_size", 0), case.pop("n_genes", 5000 if "encoder_sizes" in case else 100))
        config = {"path_csv": [f"{name}/table.h5ad"], "save_dir": f"{name}/run", "device": "cpu"} | case
        if "img_size" in case:
            config |= {"patch_data_path": [f"{name}/tiles"], "vae_checkpoint": "", "cache": "ram"}
        (folder / "config.json").write_text(json.dumps(config))
        script = "histopathology_gan.py" if "img_size" in case else "betaVAE_training.py"
        words = [sys.executable, script, "--config", f"{name}/config.json", "--dry_run"]
        done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    if not (found := LINE.search(done.stdout)):
        raise RuntimeError(f"{script}: {done.stderr.strip().splitlines()[-1:] or done.stdout}")
    measured, estimated = (float(text.split()[0]) * UNITS[text.split()[1]] for text in found.groups())
    return {"measured": measured, "estimated": estimated, "error": round(estimated / measured - 1, 3)}


def main() -> int:
    """Measure each case, print a table, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="only cases whose name has one of these in it")
    args = parser.parse_args()
    results = {}
    for name, case in CASES.items():
        if args.cases and not any(word in name for word in args.cases):
            continue
        found = results[name] = measure(case)
        print(
            f"{name:42} {found['measured'] / 1e9:6.2f} GB measured, {found['estimated'] / 1e9:6.2f} GB estimated "
            f"({found['error']:+.0%})",
            flush=True,
        )
    print(json.dumps({"benchmark": "memory", "cases": results, **cpu()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
