"""Which step makes the tiles match the patient? Each row trained for the same minutes, judged on held-out patients.

    python benchmarks/conditioning.py --demo demo --her2st her2st --minutes 6 \\
        --rows published projection+mismatched residual --seeds 99

Sets: `demo`, the lungs of a finished `make demo`; `her2st`, spots of two sections, judged on the third. Each run is
trained by histopathology_gan.py, stopped by the clock, and judged by evaluate_conditioning.py and fid.py. One line per
(row, set, seed) is appended to --out as soon as it is known; lines that are there are not run again.
Nothing else should run: the clock decides how far a row gets.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.checkpoint import load_checkpoint  # noqa: E402

TRAIN = {"batch_size": 8, "num_epochs": 10**6, "cache": "ram", "ema_images": 2000, "log_interval": 100, "device": "cpu"}
DCGAN = TRAIN | {
    "gan_type": "dcgan",
    "encoding_dims": 64,
    "step_channels": 16,
    "condition_share": 0.7,
    "lr_generator": 5e-4,
    "lr_critic": 1e-3,
    "adam_beta1": 0.0,
    "adam_beta2": 0.9,
}
PUBLISHED = DCGAN | {  # configs/reference at this size
    "loss_type": "wganvae",
    "standardise": "batch",
    "noise": "uniform",
    "critic_norm": "batch",
    "critic_output": "leaky",
    "penalty_per": "batch",
    "shuffle": "slides",
    "lr_generator": 1e-4,
    "lr_critic": 4e-4,
    "adam_beta1": 0.5,
    "adam_beta2": 0.999,
}
SEES = DCGAN | {"loss_type": "wgangpvae", "cond_dim": 32, "cond_dropout": 0.0}
RESIDUAL = SEES | {
    "gan_type": "residual",
    "loss_type": "rpganvae",
    "step_channels": 8,
    "lr_generator": 1e-3,
    "lr_critic": 1e-3,
    "adam_beta2": 0.99,
    "gamma": 0.3,
}
ROWS: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "latent kept": DCGAN | {"loss_type": "wganvae"},
    "projection": SEES | {"mismatched_weight": 0.0},
    "projection+mismatched, added": SEES | {"condition": "add"},
    "projection+mismatched": SEES,
    "residual": RESIDUAL,
    "residual+dropout": RESIDUAL | {"cond_dropout": 0.1},
    "residual+dropout, guidance 1.5": RESIDUAL | {"cond_dropout": 0.1},  # the model of the row above, sampled otherwise
}
GUIDANCE = {"residual+dropout, guidance 1.5": "1.5"}
MEASURES = ("nuclear_density", "haematoxylin_od", "eosin_od", "white_space")
HEAD = (
    "| row | set | seed | steps | KID | FID | grey levels | top-1 (chance, real) | MRR centred (chance, real) | "
    + " | ".join(f"r {m} (ridge)" for m in MEASURES)
    + " | largest mean shuffled r | largest p of these | spread | top-1 without expression | digest |"
)


def main() -> None:
    """Make the configs, run what is missing, append the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", help="folder of a finished make demo")
    parser.add_argument("--her2st", help="a folder with data/her2st.h5ad, tiles/her2st, checkpoints/betavae_her2st")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=6.0, help="of training per run")
    parser.add_argument("--work", default="benchmarks/runs", help="folder of the runs")
    parser.add_argument("--out", default="benchmarks/CONDITIONING.md")
    args = parser.parse_args()
    sets = {name: folder for name in ("demo", "her2st") if (folder := getattr(args, name))}
    out = Path(args.out)
    for seed in args.seeds:
        for row in args.rows:
            for name, folder in sets.items():
                key = f"| {row} | {name} | {seed} |"
                if out.exists() and key in out.read_text():
                    print(f"{key} is there")
                    continue
                line = measure(row, name, Path(folder).resolve(), seed, args.minutes, Path(args.work).resolve())
                head = f"\n{HEAD}\n|{' --- |' * (HEAD.count('|') - 1)}\n"
                with open(out, "a") as file:  # one write, at the end: two calls may share the file
                    file.write(f"{'' if HEAD in out.read_text() else head}{key} {line}\n")
                print(f"{key} {line}", flush=True)


def measure(row: str, name: str, folder: Path, seed: int, minutes: float, work: Path) -> str:
    """Train, judge, and return the rest of the table's line."""
    trained = row.removesuffix(", guidance 1.5")
    run = work / f"{name}-{trained}-{seed}".replace(" ", "_").replace(",", "")
    run.mkdir(parents=True, exist_ok=True)
    config = run / "settings.json"
    config.write_text(json.dumps(data_of(name, folder) | ROWS[trained] | {"seed": seed, "save_dir": str(run / "gan")}))
    if not (run / "trained").exists():  # a run that was cut is trained afresh: each has the same minutes
        train(folder, ["--config", str(config), "--restart"], minutes * 60)
        (run / "trained").touch()
    judged = run / f"conditioning{GUIDANCE.get(row, '')}"
    flags = ["--checkpoint", str(run / "gan"), "--config", str(config)]
    spots = ["--tiles", "8", "--patients", "30", "--ceiling", "sides", "--nulls", "torus"] if name == "her2st" else []
    guidance = ["--guidance", GUIDANCE[row]] if row in GUIDANCE else []
    command(folder, "evaluate_conditioning.py", [*flags, *spots, *guidance, "--out", str(judged)])
    sizes = ["--sample_size", "180", "--iterations", "3", "--extractor_side", "tiles"]
    command(folder, "fid.py", [*flags, *sizes, *guidance, "--out", str(judged / "fid")])
    m = json.loads((judged / "metrics.json").read_text())
    fid = json.loads((judged / "fid" / "metrics.json").read_text())
    steps = load_checkpoint(run / "gan" / "last.pt", "gan_training")[0]["step"]
    live = m["liveness"]["pixel_difference"]["value"]
    top, mrr = m["retrieval"]["plain"]["top1"], m["retrieval"]["centred"]["mrr"]
    cells = [steps, f"{fid['kid']['mean']:.1f}", f"{fid['fid']['mean']:.0f}", f"{live:.3g}", trio(top), trio(mrr)]
    shown = [m["morphology"][k] for k in MEASURES]
    cells += [f"{number(v['pearson'])} ({number(v['ridge'])})" for v in shown]
    cells.append(number(max((v["shuffled_pearson"] or 0) for v in shown)))
    cells.append(f"{max((1.0 if v['p_value'] is None else v['p_value']) for v in shown):.3f}")
    without = m["controls"]["unconditional"]["retrieval"]["plain"]["top1"]
    cells += [number((m["diversity"] or {}).get("value")), number(without["value"])]
    return " | ".join(map(str, [*cells, m["gan"]["digest"][:8]])) + " |"


def data_of(name: str, folder: Path) -> dict[str, Any]:
    """Return a set's settings. her2st: <folder>/data/her2st.h5ad, tiles/her2st, checkpoints/betavae_her2st."""
    if name == "her2st":
        paths = {"path_csv": ["data/her2st.h5ad"], "patch_data_path": ["tiles/her2st"]}
        return paths | {"img_size": 64, "vae_checkpoint": "checkpoints/betavae_her2st"}
    paths = {"path_csv": ["demo/data/lung.csv"], "patch_data_path": ["demo/tiles/lung"], "tissues": ["lung"]}
    return paths | {"img_size": 64, "max_patch_per_wsi": 40, "vae_checkpoint": "demo/checkpoints/betavae_tissues.pt"}


def train(folder: Path, flags: list[str], seconds: float) -> None:
    """Run histopathology_gan.py until the clock stops it (status 75: saved)."""
    words = [sys.executable, str(ROOT / "histopathology_gan.py"), *flags]
    process = subprocess.Popen(words, cwd=folder.parent if folder.name == "demo" else folder)
    time.sleep(1)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        status = process.wait(120)
    if status not in (0, 75):
        raise SystemExit(f"histopathology_gan.py {' '.join(flags)}: status {status}")


def command(folder: Path, script: str, flags: list[str]) -> None:
    """Run one of the toolkit's commands."""
    words = [sys.executable, str(ROOT / script), *flags]
    subprocess.run(words, cwd=folder.parent if folder.name == "demo" else folder, check=True)


def trio(block: dict[str, Any]) -> str:
    """Return value (chance, ceiling)."""
    return f"{number(block['value'])} ({number(block['chance'])}, {number(block['ceiling'])})"


def number(value: float | None) -> str:
    """Return two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
