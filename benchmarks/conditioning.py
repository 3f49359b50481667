"""Which step makes the tiles match the patient? Each row trained for the same minutes, judged on held-out patients.

    make demo
    python benchmarks/conditioning.py --demo demo --data ../shared/data --seeds 1 2 3 \\
        --rows published projection+mismatched residual
    python benchmarks/conditioning.py --data data --img_size 256 --device cuda --minutes 10 --seeds 1 --rows residual

Sets: `demo`, the lungs of a finished `make demo`; `her2st`, the spots of two sections, judged on the third, made here
from --data (her2st/ and the mapping of its symbols). Each run is trained by histopathology_gan.py, stopped by the
clock, and judged by evaluate_conditioning.py and fid.py. The clock counts processor time of the one training thread,
start-up included, so that other work beside it does not cost a row its steps; with --device cuda it is the wall's.
A line of JSON per (row, set, seed) is appended to --results as soon as it is known; what is there is not run again.
After each the tables between the marks of --out are drawn anew: mean and sd over the seeds.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conditioning_tables import CONTROLS, MEASURES, draw, read

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.checkpoint import load_checkpoint  # noqa: E402

TRAIN = {"batch_size": 8, "num_epochs": 10**6, "cache": "ram", "ema_images": 2000, "log_interval": 100}
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
RESIDUAL = SEES | {  # the configs with expression, as until 2026-11-26: six taps now
    "gan_type": "residual",
    "loss_type": "rpganvae",
    "step_channels": 8,
    "lr_generator": 1e-3,
    "lr_critic": 1e-3,
    "adam_beta2": 0.99,
    "gamma": 1.0,
    "turns": True,
    "enlarge_taps": 4,
}
EQUALISED = RESIDUAL | {  # those without, as until 2026-11-26
    "equalised": True,
    "lr_generator": 2e-3,
    "lr_critic": 4e-3,
    "gamma": 0.5,
    "batch_size": 16,
    "first_side": 32,
    "grow_images": 12000,
}
ROWS: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "latent kept": DCGAN | {"loss_type": "wganvae"},
    "projection": SEES | {"mismatched_weight": 0.0},
    "projection+mismatched": SEES,
    "projection+mismatched, added": SEES | {"condition": "add"},
    "projection+mismatched, turned": SEES | {"turns": True},
    "residual": RESIDUAL,
    "residual, six taps": RESIDUAL | {"enlarge_taps": 6},
    "residual, equalised": EQUALISED,
    "residual, equalised, six taps": EQUALISED | {"enlarge_taps": 6},  # networks as `residual` of QUALITY.md
    "residual+dropout": RESIDUAL | {"cond_dropout": 0.1},
    "residual+dropout, guidance 1.5": RESIDUAL | {"cond_dropout": 0.1},  # the row above, sampled otherwise
}
GUIDANCE = {"residual+dropout, guidance 1.5": "1.5"}
LARGE = {"dcgan": {"step_channels": 64}, "residual": {"step_channels": 32, "batch_size": 32}}  # from 128 px, on a GPU


def main() -> None:
    """Make the configs, run what is missing, append the lines, draw the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", help="folder of a finished make demo")
    parser.add_argument("--data", help="folder with her2st/ and expression/tissueenrich_human_gene_mapping.csv.gz")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=6.0, help="of training per run")
    parser.add_argument("--img_size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", default="benchmarks/runs", help="folder of the runs")
    parser.add_argument("--results", default="benchmarks/conditioning.jsonl")
    parser.add_argument("--out", default="benchmarks/CONDITIONING.md")
    args = parser.parse_args()
    work, results = Path(args.work).resolve(), Path(args.results)
    sets = {"demo": Path(args.demo).resolve()} if args.demo else {}
    if args.data:
        sets["her2st"] = work / f"her2st_{args.img_size}"
        prepare_her2st(sets["her2st"], Path(args.data).resolve(), args.img_size)
    for seed in args.seeds:
        for row in args.rows:
            for name, folder in sets.items():
                key = key_of(row, name, seed, args)
                if any(key.items() <= line.items() for line in read(results)):
                    print(f"{key} is there")
                    continue
                line = key | judge(row, name, folder, trained_run(row, name, folder, seed, args), args)
                with open(results, "a") as file:  # one write, at the end: two calls may share the file
                    file.write(json.dumps(line) + "\n")
                draw(results, Path(args.out), list(ROWS))
    draw(results, Path(args.out), list(ROWS))


def prepare_her2st(folder: Path, data: Path, img_size: int) -> None:
    """Make the spots' table and stores and the beta-VAE of sections C2 and C3, where they are not there yet."""
    if (folder / "done").exists():
        return
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    mapping = data / "expression/tissueenrich_human_gene_mapping.csv.gz"
    spots = ["spots", "--input", data / "her2st", "--pitch", "200", "--mapping", mapping, "--top_genes", "1000"]
    spots += ["--test", "C4", "--img_size", img_size, "--out", "data/her2st.h5ad", "--tiles", "tiles/her2st"]
    command(folder, "prepare_data.py", [*map(str, spots)])
    vae = json.loads((ROOT / "configs/spots/betavae.json").read_text()) | {"device": "cpu"}
    vae |= {"path_csv": ["data/her2st.h5ad"], "save_dir": "checkpoints/betavae_her2st"}
    (folder / "configs/betavae.json").write_text(json.dumps(vae))
    command(folder, "betaVAE_training.py", ["--config", "configs/betavae.json"])
    (folder / "done").touch()


def key_of(row: str, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return what tells one line of the results from another: what was trained, and for how long, and on what."""
    about = {"img_size": args.img_size, "minutes": args.minutes, "device": args.device}
    return {"row": row, "set": name, "seed": seed} | about | {"settings": digest_of(sized(ROWS[row], args.img_size))}


def sized(settings: dict[str, Any], img_size: int) -> dict[str, Any]:
    """Return a row's settings at a size: wider networks from 128 px."""
    return settings | (LARGE[settings["gan_type"]] if img_size > 64 else {})


def digest_of(settings: dict[str, Any]) -> str:
    """Return 8 hex digits that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def trained_run(row: str, name: str, folder: Path, seed: int, args: argparse.Namespace) -> Path:
    """Return the folder of the trained run, trained where it is not there yet: gan/, settings.json."""
    key = key_of(row, name, seed, args)
    words = [name, row.partition(",")[0], seed, *list(key.values())[3:]]
    run = Path(args.work).resolve() / "-".join(map(str, words)).replace(" ", "_")
    run.mkdir(parents=True, exist_ok=True)
    own = {"img_size": args.img_size, "device": args.device, "seed": seed, "save_dir": str(run / "gan")}
    config = run / "settings.json"
    config.write_text(json.dumps(data_of(name) | sized(ROWS[row], args.img_size) | own))
    if not (run / "trained").exists():  # a run that was cut is trained afresh: each has the same minutes
        train(folder, ["--config", str(config), "--restart"], args.minutes * 60, wall=args.device != "cpu")
        (run / "trained").touch()
    return run


def judge(row: str, name: str, folder: Path, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the tables are made of. Distances are to tiles of held-out patients alone."""
    judged = run / f"conditioning{GUIDANCE.get(row, '')}"
    flags = ["--checkpoint", str(run / "gan"), "--config", str(run / "settings.json")]
    spots = ["--tiles", "8", "--patients", "30", "--ceiling", "sides", "--nulls", "torus"] if name == "her2st" else []
    guidance = ["--guidance", GUIDANCE[row]] if row in GUIDANCE else []
    command(folder, "evaluate_conditioning.py", [*flags, *spots, *guidance, "--out", str(judged)])
    sizes = ["--sample_size", "180", "--iterations", "3", "--extractor_side", "tiles", "--split", "test"]
    command(folder, "fid.py", [*flags, *sizes, *guidance, "--out", str(judged / "fid")])
    m = json.loads((judged / "metrics.json").read_text())
    fid = json.loads((judged / "fid" / "metrics.json").read_text())
    shown = ("pearson", "low", "high", "shuffled_pearson", "p_value", "null_q99", "ridge", "ceiling")
    kept = ("value", "chance", "ceiling", "p_value")
    retrieval = {"top1": m["retrieval"]["plain"]["top1"], "mrr_centred": m["retrieval"]["centred"]["mrr"]}
    return {
        "steps": load_checkpoint(run / "gan" / "last.pt", "gan_training")[0]["step"],
        "kid": fid["kid"]["mean"],
        "fid": fid["fid"]["mean"],
        "grey_levels": m["liveness"]["pixel_difference"]["value"],
        "retrieval": {k: {key: v[key] for key in kept} for k, v in retrieval.items()},
        "morphology": {k: {key: m["morphology"][k][key] for key in shown} for k in MEASURES},
        "round_trip": {key: m["round_trip"][key] for key in kept},
        "spread": (m["diversity"] or {}).get("value"),
        "memorised": m["memorisation"]["value"],
        "top1_of_controls": {k: m["controls"][k]["retrieval"]["plain"]["top1"]["value"] for k in CONTROLS},
        "largest_r_without_expression": max(
            abs(v["pearson"] or 0) for v in m["controls"]["unconditional"]["morphology"].values()
        ),
        "digest": m["gan"]["digest"][:8],
        "extractor": m["extractor"],
    }


def data_of(name: str) -> dict[str, Any]:
    """Return a set's settings, with paths from the folder in which its commands run."""
    if name == "her2st":
        paths = {"path_csv": ["data/her2st.h5ad"], "patch_data_path": ["tiles/her2st"]}
        return paths | {"vae_checkpoint": "checkpoints/betavae_her2st"}
    paths = {"path_csv": ["demo/data/lung.csv"], "patch_data_path": ["demo/tiles/lung"], "tissues": ["lung"]}
    return paths | {"max_patch_per_wsi": 40, "vae_checkpoint": "demo/checkpoints/betavae_tissues.pt"}


def train(folder: Path, flags: list[str], seconds: float, wall: bool) -> None:
    """Run histopathology_gan.py until the clock stops it (status 75: saved)."""
    words = [sys.executable, str(ROOT / "histopathology_gan.py"), *flags]
    started = time.monotonic()
    process = subprocess.Popen(words, cwd=of(folder), env=os.environ | {} if wall else one_thread())
    while process.poll() is None:
        used = time.monotonic() - started if wall else processor_seconds(process.pid)
        if used >= seconds:
            process.terminate()
            process.wait(120)
        time.sleep(0.5)
    if process.returncode not in (0, 75):
        raise SystemExit(f"histopathology_gan.py {' '.join(flags)}: status {process.returncode}")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, 0 where it is gone (Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command(folder: Path, script: str, flags: list[str]) -> None:
    """Run one of the toolkit's commands."""
    subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=of(folder), check=True, env=one_thread())


def of(folder: Path) -> Path:
    """Return where a set's commands run: the demo's paths begin with demo/."""
    return folder.parent if folder.name == "demo" else folder


def one_thread() -> dict[str, str]:
    """Return the environment with one thread: networks of this size gain little from a second."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
