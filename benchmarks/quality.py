"""How good are the pictures? The published DCGAN, the corrected one, the residual networks: equal minutes, same tiles.

    python benchmarks/quality.py --data ../shared/data --minutes 10 --seeds 1 2 3 --sets lung_n
    python benchmarks/quality.py --data ../shared/data --minutes 10 --seeds 1 --sets her2st
    python benchmarks/quality.py --data data --minutes 10 --seeds 1 --img_size 256 --device cuda

Sets: `lung_n`, normal lung (LC25000), split by source image, without expression; `her2st`, spots of sections C2 and C3
against those of C4, each tile with its spot's expression. Runs are trained by histopathology_gan.py and stopped by the
clock, as in conditioning.py; the model of each minute is judged against all held-out tiles: KID, FID; the last one also
by precision, recall, memorisation and its spectrum's highest peak. Real against real: training against held-out tiles.
A line of JSON per (set, row, seed) is appended to --results; what is there is not run again. Tables are drawn between
the marks of --out; a grid of each run's tiles is beside its model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import conditioning as bench
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from conditioning_tables import mean_sd, put, read, table

ROOT = Path(__file__).resolve().parent.parent

from common.config import GANSettings, load_config  # noqa: E402  (conditioning puts ROOT on the path)
from common.run import pick_device  # noqa: E402
from datasets.cohort import open_cohort  # noqa: E402
from datasets.image_folder import read_image  # noqa: E402
from datasets.tiles import area_resize, write_store  # noqa: E402
from metrics.diversity import memorisation  # noqa: E402
from metrics.frechet import frechet_distance  # noqa: E402
from metrics.kernel import kernel_distance  # noqa: E402
from metrics.manifold import precision_recall  # noqa: E402
from metrics.spectrum import log_power, peaks_beside, radial  # noqa: E402
from models.features import load_extractor  # noqa: E402
from sources.evaluation import Generated  # noqa: E402
from sources.gan import open_gan  # noqa: E402
from sources.pictures import grid_of, write_png  # noqa: E402

WITHOUT = {"wganvae": "wgan", "wgangpvae": "wgangp", "rpganvae": "rpgan"}  # the same loss without expression
CORRECTED = bench.SEES | {"turns": True}
ROWS = {
    "published DCGAN": bench.PUBLISHED,
    "corrected DCGAN": CORRECTED,
    "residual": bench.EQUALISED | {"enlarge_taps": 6},
    "residual, four taps": bench.EQUALISED,  # and the rows below
    "residual, falling rates": bench.EQUALISED | {"schedule_images": 45000, "lr_final": 0.1},  # 64 px, 10 minutes
    "residual, one rate": bench.RESIDUAL,
    "residual, penalties by difference": bench.EQUALISED | {"penalty_form": "difference"},
    "residual, full side throughout": bench.EQUALISED | {"first_side": 0, "grow_images": 0},
}
EARLIER = ("residual, coarse tile by means",)  # of before 2026-11-26, no longer to be had with six taps, so not run
COLOURS = (
    "tab:grey",
    "tab:orange",
    "tab:blue",
    "tab:pink",
    "tab:purple",
    "tab:cyan",
    "tab:green",
    "tab:red",
    "tab:olive",
)
SHOWN = 24  # tiles in a grid
REAL = "real"  # the row of real tiles in the generator's place
FLOORS = 20  # random choices of real tiles for that row


def main() -> None:
    """Run what is missing, append the lines, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with tiles/lung_n, tiles/groups.csv, her2st, expression")
    parser.add_argument("--sets", nargs="+", choices=("lung_n", "her2st"), default=["lung_n", "her2st"])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="none: real against real alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--img_size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", default="benchmarks/runs", help="folder of the runs")
    parser.add_argument("--results", default="benchmarks/quality.jsonl")
    parser.add_argument("--out", default="benchmarks/QUALITY.md")
    args = parser.parse_args()
    work, data, results = Path(args.work).resolve(), Path(args.data).resolve(), Path(args.results).resolve()
    for seed in args.seeds:
        for name in args.sets:
            folder = work / f"{name}_{args.img_size}"
            prepare = prepare_lung if name == "lung_n" else bench.prepare_her2st
            prepare(folder, data, args.img_size)
            key = {"set": name, "row": REAL, "img_size": args.img_size}
            if not any(key.items() <= line.items() for line in read(results)):
                append(results, key | {"peak_excess": peaks_of_real(folder, settings_of("residual", name, args))})
            for row in args.rows:
                settings = settings_of(row, name, args)
                key = {"set": name, "row": row, "seed": seed, "img_size": args.img_size}
                key |= {"minutes": args.minutes, "device": args.device, "settings": bench.digest_of(settings)}
                if any(key.items() <= line.items() for line in read(results)):
                    print(f"{key} is there")
                    continue
                run = work / "-".join(map(str, ["quality", *key.values()])).replace(" ", "_")
                append(
                    results, key | measure(folder, run, settings | {"seed": seed, "save_dir": str(run / "gan")}, args)
                )
    draw(read(results), Path(args.out))
    plot(read(results), work, Path(args.out).parent / "quality")


def append(results: Path, line: dict[str, Any]) -> None:
    """Add a line to the results, and print what is short of it."""
    with open(results, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({k: v for k, v in line.items() if k not in ("curve", "spectrum")}), flush=True)


def prepare_lung(folder: Path, data: Path, img_size: int) -> None:
    """Make a store of each source image's tiles. Their resolution is not known and not used here: 1 is written."""
    if (folder / "done").exists():
        return
    groups = pd.read_csv(data / "tiles" / "groups.csv").query("folder == 'lung_n'")
    for group, rows in groups.groupby("group"):
        tiles = [area_resize(read_image(data / "tiles" / "lung_n" / name), img_size) for name in rows["file"]]
        members = [(img_size * k, 0, 1.0, tile) for k, tile in enumerate(tiles)]
        write_store(folder / "tiles", str(group), members, mpp=1.0, tile_size=img_size, fmt="png")
    (folder / "done").touch()


def settings_of(row: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a run's settings but for its seed and folder."""
    settings = bench.sized(ROWS[row], args.img_size)
    settings |= {"img_size": args.img_size, "device": args.device}
    if name == "her2st":
        return settings | bench.data_of(name)
    published = {"standardise": "train"} if settings.get("standardise") == "batch" else {}  # no expression, no batch
    return settings | published | {"loss_type": WITHOUT[settings["loss_type"]], "patch_data_path": ["tiles"]}


def measure(folder: Path, run: Path, settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train, with a model aside for each minute, and judge."""
    run.mkdir(parents=True, exist_ok=True)
    config = run / "settings.json"
    config.write_text(json.dumps(settings))
    if not (run / "trained").exists():
        train(folder, config, run, args)
        (run / "trained").touch()
    here = os.getcwd()
    os.chdir(folder)
    try:
        return judge(config, run)
    finally:
        os.chdir(here)


def train(folder: Path, config: Path, run: Path, args: argparse.Namespace) -> None:
    """Train until the clock stops it; minute_01.model, ... are the model as it was saved last by then."""
    wall = args.device != "cpu"
    words = [sys.executable, str(ROOT / "histopathology_gan.py"), "--config", str(config), "--restart"]
    shutil.rmtree(run / "minutes", ignore_errors=True)
    (run / "minutes").mkdir()
    started, minute = time.monotonic(), 1
    process = subprocess.Popen(words, cwd=folder, env=None if wall else bench.one_thread())
    while process.poll() is None:
        used = time.monotonic() - started if wall else bench.processor_seconds(process.pid)
        if used >= 60 * minute and minute < args.minutes:
            if (run / "gan" / "gan.model").exists():  # it is replaced whole, never half
                shutil.copy(run / "gan" / "gan.model", run / "minutes" / f"{minute:02d}.model")
            minute += 1
        if used >= 60 * args.minutes:
            process.terminate()
            process.wait(120)
        time.sleep(0.5)
    if process.returncode not in (0, 75):
        raise SystemExit(f"{' '.join(words)}: status {process.returncode}")
    shutil.copy(run / "gan" / "gan.model", run / "minutes" / f"{args.minutes:02g}.model")


def judge(config: Path, run: Path) -> dict[str, Any]:
    """Return the last model's numbers, and KID and FID of each minute's."""
    cfg = load_config(GANSettings, config)
    device = pick_device(cfg.device)
    extractor = load_extractor("efficientnet_lite0", None, device, cfg.img_size)
    models = sorted((run / "minutes").glob("*.model"), key=lambda path: float(path.stem))
    gans = [open_gan(path, device) for path in models]
    split_seed = gans[-1].state["split_seed"]
    cohorts = cohorts_of(load_config(GANSettings, config, split_seed=split_seed))
    real = {split: cohort.tiles.read(np.arange(len(cohort.tiles))) for split, cohort in cohorts.items()}
    features = {split: features_of(extractor, tiles) for split, tiles in real.items()}
    n = len(real["test"])
    conditions = gans[-1].profiles(None, cohorts["test"].table).conditions() if gans[-1].conditional else None
    curve = []
    for path, gan in zip(models, gans, strict=True):
        spots = (
            1 if conditions is None else len(conditions)
        )  # each held-out spot has one tile; else n without expression
        source = Generated(gan.generator, conditions, spots, n // spots, device)
        tiles = np.concatenate(list(source.batches(1)))
        made = features_of(extractor, tiles)
        kid, fid = kernel_distance(made, features["test"]), frechet_distance(made, features["test"])
        point = {"minute": float(path.stem), "images": gan.state["images_seen"], "kid": kid, "fid": fid}
        curve.append({k: float(v) for k, v in point.items()})
    precision, recall = precision_recall(features["test"], made)
    write_png(run / "tiles.png", grid_of(tiles[:SHOWN], 8))
    write_png(run.parent / f"{run.name.split('-')[1]}_real.png", grid_of(real["test"][:SHOWN], 8))
    train_some = features["train"][np.random.default_rng(0).permutation(len(features["train"]))[:n]]
    return {
        "n": n,
        "extractor": extractor.describe(),
        **curve[-1],
        "floor_kid": float(kernel_distance(train_some, features["test"])),
        "floor_fid": float(frechet_distance(train_some, features["test"])),
        "precision": precision,
        "recall": recall,
        "memorised": memorisation(made, features["train"], features["test"])["mean"],
        "peak": peaks_beside(tiles, real["test"]),
        "curve": curve,
        "spectrum": [radial(log_power(x))[1].round(3).tolist() for x in (tiles, real["test"])],
        "run": run.name,
    }


def cohorts_of(cfg: GANSettings) -> dict[str, Any]:
    """Return the training and the held-out cohort."""
    return {split: open_cohort(cfg, (split,), need_expression=bool(cfg.path_csv)) for split in ("train", "test")}


def peaks_of_real(folder: Path, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Return the peak over real, of real tiles in the generator's place, for FLOORS random choices each.

    training: n training tiles against the n held-out ones, as a generator's n; halves: a half of the held-out tiles
    against as many training ones.
    """
    config = folder / "real.json"
    config.write_text(json.dumps(settings))
    here = os.getcwd()
    os.chdir(folder)
    try:
        cohorts = cohorts_of(load_config(GANSettings, config))
        real = {split: cohort.tiles.read(np.arange(len(cohort.tiles))) for split, cohort in cohorts.items()}
    finally:
        os.chdir(here)
    rng, n = np.random.default_rng(0), len(real["test"])

    def some(split: str, number: int) -> np.ndarray:
        return real[split][rng.permutation(len(real[split]))[:number]]

    pairs = {
        "training": lambda: (some("train", n), real["test"]),
        "halves": lambda: (some("test", n // 2), some("train", n // 2)),
    }
    return {name: [peaks_beside(*pair())["excess"] for _ in range(FLOORS)] for name, pair in pairs.items()}


def features_of(extractor: Any, tiles: np.ndarray) -> np.ndarray:
    """Return features (n, d), 64 tiles at a time."""
    return np.concatenate([extractor(tiles[i : i + 64]) for i in range(0, len(tiles), 64)])


def trained(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of networks."""
    return [line for line in lines if line["row"] != REAL]


def draw(lines: list[dict[str, Any]], out: Path) -> None:
    """Put a table per set between the marks of `out`."""
    heads = ["row", "seeds", "images", "KID", "FID", "precision", "recall", "memorised", "peak over real, decades"]
    found = []
    for name, size in sorted({(line["set"], line["img_size"]) for line in trained(lines)}):
        of_set = [line for line in lines if (line["set"], line["img_size"]) == (name, size)]
        ours, real = trained(of_set), [line["peak_excess"]["training"] for line in of_set if line["row"] == REAL]
        rows = []
        for row in (*ROWS, *EARLIER):
            of_row = [line for line in ours if line["row"] == row]
            if not of_row and row in EARLIER:
                continue
            if not of_row:
                rows.append([row, "not run"] + [""] * (len(heads) - 2))
                continue
            plain = [[line[k] for line in of_row] for k in ("kid", "fid", "precision", "recall", "memorised")]
            plain.append([line["peak"]["excess"] for line in of_row])
            images = f"{np.mean([line['images'] for line in of_row]):.0f}"
            rows.append(
                [row, ", ".join(map(str, sorted(line["seed"] for line in of_row))), images, *map(mean_sd, plain)]
            )
        floor = [f"{ours[-1][k]:.2f}" for k in ("floor_kid", "floor_fid")]
        peak = mean_sd(real[-1]) if real else "not run"
        rows.append(["real: training against held-out", "", "", *floor, "", "", "0.5", peak])
        found += [f"### {name}, {size} px, n = {ours[-1]['n']}", table(heads, rows)]
    put(out, "quality.py", found)


def plot(lines: list[dict[str, Any]], work: Path, out: Path) -> None:
    """Write per set <set>_<side>.png, KID against images and minutes and the spectra, and <set>_<side>_tiles.jpg.

    Tiles are those of each row's first seed, from the runs in `work`; where these are gone the picture stays as it was.
    Real tiles are not shown: they are not the project's to copy.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, size in sorted({(line["set"], line["img_size"]) for line in trained(lines)}):
        ours = [line for line in trained(lines) if (line["set"], line["img_size"]) == (name, size)]
        figure, (by_images, by_minutes, power) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
        for colour, row in zip(COLOURS, (*ROWS, *EARLIER), strict=True):
            for k, line in enumerate(x for x in ours if x["row"] == row):
                style = {"color": colour, "label": row if k == 0 else None, "lw": 1.2}
                kid = [point["kid"] for point in line["curve"]]
                by_images.plot([point["images"] for point in line["curve"]], kid, **style)
                by_minutes.plot([point["minute"] for point in line["curve"]], kid, **style)
                power.plot(np.arange(1, len(line["spectrum"][0]) + 1), line["spectrum"][0], **style)
        power.plot(
            np.arange(1, len(ours[-1]["spectrum"][1]) + 1), ours[-1]["spectrum"][1], "k--", label="real, held-out"
        )
        for axes, words in ((by_images, "images shown"), (by_minutes, "minutes")):
            axes.axhline(ours[-1]["floor_kid"], color="k", ls="--", lw=1, label="real against real")
            axes.set(xlabel=words, ylabel="KID", yscale="log")
        power.set(xlabel="cycles per tile", ylabel="log10 power")
        by_minutes.legend(fontsize=8)
        power.legend(fontsize=8)
        figure.suptitle(f"{name}, {size} px")
        figure.savefig(out / f"{name}_{size}.png", dpi=110)
        plt.close(figure)
        first = {row: next((x["run"] for x in ours if x["row"] == row), None) for row in ROWS}
        grids = {
            row: work / run / "tiles.png" for row, run in first.items() if run and (work / run / "tiles.png").exists()
        }
        if grids:
            figure, places = plt.subplots(
                len(grids), 1, figsize=(8, 3.3 * len(grids)), layout="constrained", squeeze=False
            )
            for axes, (row, path) in zip(places[:, 0], grids.items(), strict=True):
                axes.imshow(plt.imread(path), interpolation="nearest")
                axes.set_title(row, fontsize=10)
                axes.axis("off")
            figure.savefig(out / f"{name}_{size}_tiles.jpg", dpi=110, pil_kwargs={"quality": 85})
            plt.close(figure)


if __name__ == "__main__":
    main()
