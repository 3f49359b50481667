"""Make tiles with a trained GAN: for a patient, for a profile of another study, or from noise alone.

    python generate_tissue_images.py --checkpoint checkpoints/rna-gan_lung.model --config configs/gan_run_lung.json \\
        --vae --vae_checkpoint checkpoints/betavae_tissues.pt --patient1 GTEX-15RJ7-0625.svs --sample_size 600
    python generate_tissue_images.py --checkpoint checkpoints/rna-gan_brain.model --config configs/gan_run_brain.json \\
        --vae --rna_data GSE120795_brain_proteincoding.csv --random_patient --sample_size 600

Reads the checkpoint, which says what the model is; for an RNA-GAN also its beta-VAE and a table (--rna_data, else the
config's). Without --patient1 and --random_patient each tile has the profile of a held-out donor, drawn by seed.
Writes into --out (default generated/<run>/<patient>/): one PNG per tile, named by seed and number, grid.png and
manifest.json, which also says how far the profiles are from those that the beta-VAE knows. With --checkpoint2 also the
folders second/ and real/, made the same way, and comparison.png: real tiles of the patient, the first model's and the
second's, side by side. With --sweep also sweep.png: tiles along a shift of betaVAE_interpolation.py, a row per noise, a
column per alpha.
Tile k depends on the model, the profile, the seed and k only. Typing the same command again makes what is missing.
With torchrun, or --parallel, several processes make the same files, each its share.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import content_digest
from common.config import PRECISIONS, GANSettings, add_fit_scaler, add_parallel, add_tile_limits, load_config
from common.distributed import joined, launch, under_torchrun
from common.errors import InputError, command_parser, run_command, shorten, warn
from common.files import read_json, sha256_of, write_json
from common.run import generator_for, pick_device
from common.together import together
from datasets.cohort import open_cohort
from datasets.expression import ExpressionTable, read_cohort_tables, read_expression
from datasets.image_folder import read_image
from datasets.keys import slide_key, slug
from datasets.tiles import area_resize
from sources.division import agree_on
from sources.gan import GAN, GANSource, open_gan
from sources.pictures import grid_of, write_png
from sources.profiles import Profiles
from sources.readers import read_shift
from sources.real import RealSource
from sources.tile_folder import TileFolder, write_tiles
from sources.vae import NOTHING, Fit

GRID_TILES, GRID_COLUMNS = 64, 8
SWEPT = 6  # noises in sweep.png
COMPARED = 16  # tiles of each of the three in comparison.png, 4 x 4


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a GAN: .model file (ours, or the published code's), run folder, export"
    )
    parser.add_argument("--checkpoint2", help="another GAN, shown beside the first and the real tiles of --patient1")
    parser.add_argument("--config", required=True, help="JSON settings: where the tables and real tiles are")
    parser.add_argument("--sample_size", type=int, default=64, help="tiles to make (default 64)")
    parser.add_argument(
        "--vae", action="store_true", help="noted only: the checkpoint says whether it takes expression"
    )
    parser.add_argument("--vae_checkpoint", help="the RNA-GAN's beta-VAE; default: the one that its settings name")
    add_fit_scaler(parser.add_argument)
    parser.add_argument("--patient1", help="a sample or slide of the table, with or without .svs")
    parser.add_argument("--rna_data", help="a table to take the profile from, .csv or .h5ad, instead of the config's")
    add_tile_limits(parser.add_argument)
    parser.add_argument("--random_patient", action="store_true", help="a profile drawn from the table by --seed")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="strength of the expression (default 1: as trained)"
    )
    parser.add_argument("--sweep", metavar="SHIFT.npz", help="an expression shift to move the profile along: sweep.png")
    parser.add_argument("--alphas", default="-2,-1,0,1,2", help="steps of --sweep, in whole shifts (-2,-1,0,1,2)")
    parser.add_argument("--out", help="folder to write to; default generated/<run>/<patient>")
    parser.add_argument("--seed", type=int, help="of noise and draws; default: the config's")
    parser.add_argument(
        "--batch_size", type=int, dest="batch", default=64, help="tiles held at once; no tile depends on it"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="bf16: a DCGAN draws faster on a CPU with AVX512-BF16; moves pixels by under a grey level in the mean",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    add_parallel(parser.add_argument)
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Models, profile, tiles, pictures."""
    if args.parallel and not under_torchrun():
        return launch(args.parallel, [__file__, *args.words])
    cfg = load_config(GANSettings, args.config, args)
    check_arguments(args)
    device = pick_device(cfg.device)
    with joined(device) as ranks:
        # The models, the profile (a row of the table; None where none is asked for), the real tiles beside them.
        with together(main_first=True):
            names = [path for path in (args.checkpoint, args.checkpoint2) if path]
            gans = [open_gan(path, device, args.precision, args.vae) for path in names]
            table, profile = table_and_profile(args, cfg, gans)
            patient = args.patient1 or profile
            asked = patient if gans[0].conditional or args.checkpoint2 else None  # the name that the user typed
            out = Path(args.out or Path("generated", gans[0].run, slide_key(asked) if asked else "no_patient"))
            sets = []
            if args.checkpoint2 and patient:
                real = real_tiles(cfg, args.config, gans[0].state["img_size"], patient, wanted=bool(args.patient1))
                if real is not None:
                    n = min(args.sample_size, real.count())
                    sets.append((real, {"patient": patient}, TileFolder(out / "real"), n))
            profiles = shift = None
            if args.sweep:
                profiles = gans[0].profiles(args.vae_checkpoint, table, Fit.of(cfg))
                shift = read_shift(args.sweep, profiles)
            for gan, folder in zip(gans, (out, out / "second"), strict=False):
                source, about = source_for(gan, args.vae_checkpoint, table, profile, args.guidance, Fit.of(cfg))
                sets.append((source, about, TileFolder(folder), args.sample_size))

        # The tiles: each rank makes its share.
        for source, about, folder, n in sets:
            agree_on(source.label, [source.describe(), n, cfg.seed])
            write_tiles(source, about, folder, n, cfg.seed, args.batch)
        if not ranks.main:
            return None

        # The pictures.
        shown = [first_tiles(folder, n, cfg.seed) for _, _, folder, n in sets]
        if shift is not None:
            write_sweep(gans[0], args, cfg.seed, profiles.condition(profile), shift, profile, out)
        if args.checkpoint2:
            write_png(out / "comparison.png", side_by_side(shown, gans[0].state["img_size"]))
            titles = ["real"] * (len(sets) > len(gans)) + [gan.run for gan in gans]
            print(f"{out / 'comparison.png'}: from left to right {', '.join(titles)}")
    whose = [f"profile {about['profile']} (split {about['split']})" for _, about, _, _ in sets if about.get("profile")]
    print(f"{out}: {args.sample_size} tiles, seed {cfg.seed}, {whose[-1] if whose else 'no one profile'}")
    return None


def table_and_profile(
    args: argparse.Namespace, cfg: GANSettings, gans: list[GAN]
) -> tuple[ExpressionTable | None, str | None]:
    """Return the table of profiles and the name of the one to use, each None where none is needed."""
    conditional = any(gan.conditional for gan in gans)
    if args.sweep and not gans[0].conditional:
        raise InputError(f"--sweep: {gans[0].path} takes no expression; name an RNA-GAN with --checkpoint")
    if args.vae and not conditional:
        warn(f"--vae: {gans[0].path} takes no expression; noted and ignored")
    if args.patient1 and not conditional:
        use = "is only used for the real tiles beside it" if args.checkpoint2 else "is ignored"
        warn(f"{gans[0].path} takes no expression; --patient1 {args.patient1} {use}")
    if not (conditional or args.random_patient or (args.rna_data and args.checkpoint2)):
        return None, None
    table = read_expression(args.rna_data) if args.rna_data else read_cohort_tables(cfg)
    return table, pick_profile(table, args.patient1, args.random_patient, cfg.seed)


def check_arguments(args: argparse.Namespace) -> None:
    """InputError where flags contradict one another."""
    if args.sample_size < 1 or args.batch < 1:
        raise InputError("--sample_size and --batch_size: 1 or more was expected")
    if not (np.isfinite(args.guidance) and args.guidance >= 0):
        raise InputError(
            f"--guidance {args.guidance}: a number from 0 (no expression) up was expected, 1 is as trained"
        )
    if args.sweep and not (args.patient1 or args.random_patient):
        raise InputError("--sweep moves one profile: name it with --patient1, or draw it with --random_patient")
    parse_alphas(args.alphas)
    if args.patient1 and args.random_patient:
        raise InputError("--patient1 names a profile and --random_patient draws one: give one of the two")


def parse_alphas(text: str) -> list[float]:
    """Return the steps of "-2,-1,0,1,2". InputError for anything but finite numbers with commas between."""
    try:
        alphas = [float(word) for word in text.split(",")]
    except ValueError:
        alphas = []
    if not alphas or not np.isfinite(alphas).all():
        raise InputError(f"--alphas {text}: numbers with commas between were expected, such as -2,-1,0,1,2")
    return alphas


def pick_profile(table: ExpressionTable, patient: str | None, random: bool, seed: int) -> str | None:
    """Return the name of the sample to use: the patient's, a random one, or None where none is asked for."""
    if patient:
        return str(table.obs.index[table.find(patient)])
    if random:
        return str(table.obs.index[int(torch.randint(len(table), (1,), generator=generator_for(seed, "patient")))])
    return None


def source_for(
    gan: GAN,
    vae_path: str | None,
    table: ExpressionTable | None,
    profile: str | None,
    guidance: float = 1.0,
    fit: Fit = NOTHING,
) -> tuple[GANSource, dict[str, Any]]:
    """Return a GAN's tiles and what the manifest says of the profile behind them."""
    if not gan.conditional:
        return GANSource(gan), {"profile": None}
    profiles = gan.profiles(vae_path, table, fit)
    about = {"table": table.source, "gene_coverage": profiles.coverage, "condition_share": gan.generator.rule.share}
    about |= {"guidance": guidance}
    if profile is None:
        names = profiles.held_out()
        conditions = profiles.conditions(names)
        about |= {"profile": None, "split": "test", "condition_digest": content_digest(conditions)}
        about |= about_distances(profiles, names)
        return GANSource(gan, conditions, names=names, guidance=guidance), about
    condition = profiles.condition(profile)
    about |= about_profile(profiles, profile) | {"condition_digest": content_digest(condition)}
    about |= about_distances(profiles, [profile])
    gan.warn_of_tissue(f"profile {profile}", about["tissue"])
    if about["split"] == "train":
        warn(f"{profile}: its donor is one of those that {gan.run} was trained on (split train)")
    return GANSource(gan, condition, names=[profile], guidance=guidance), about


def about_profile(profiles: Profiles, name: str) -> dict[str, Any]:
    """Return a profile's name, donor, tissue and split; profiles without slide belong to another study.

    Unless their donor is one that the GAN or its VAE was trained on. InputError where such a donor is to be held out.
    """
    row = profiles.table.obs.iloc[profiles.table.find(name)]
    slide, donor = str(row["wsi_file_name"]), str(row["donor"])
    elsewhere = "train" if any(model.has_donor(donor) for model in profiles.trained_on) else "another study"
    described = {"profile": name, "slide": slide, "donor": donor, "tissue": slug(str(row["tissue"]))}
    return described | {"split": profiles.split(name) if slide else elsewhere}


def about_distances(profiles: Profiles, names: list[str]) -> dict[str, Any]:
    """Return how far the profiles are from the training cloud, and say it; {} where the VAE does not know."""
    distances = profiles.distances(names)
    if distances is None:
        return {}
    print(f"{shorten(names, 2)}: distance to the training cloud: {distances.summary(names)}")
    return {"distance": distances.report(names)}


def real_tiles(cfg: GANSettings, config: str, img_size: int, patient: str, wanted: bool) -> RealSource | None:
    """Return the patient's real tiles; None, with a warning, where a profile that was drawn has none."""
    cfg.img_size = img_size  # the checkpoint's wins over the config's
    try:
        return RealSource(open_cohort(cfg, None, need_expression=False), patient, Path(config).stem)
    except InputError as error:
        if wanted:
            raise
        warn(f"no real tiles beside the generated ones: {error}")
        return None


def first_tiles(folder: TileFolder, n: int, seed: int) -> np.ndarray:
    """Write the grid of a folder of n tiles; return the first of them, (COMPARED, H, W, 3) at most."""
    first = np.stack([read_image(folder.tile(seed, k)) for k in range(min(n, max(GRID_TILES, COMPARED)))])
    write_png(folder.path / "grid.png", grid_of(first[:GRID_TILES], GRID_COLUMNS))
    return first[:COMPARED]


def write_sweep(
    gan: GAN, args: argparse.Namespace, seed: int, c: torch.Tensor, shift: torch.Tensor, profile: str, out: Path
) -> None:
    """Write sweep.png, tiles 0.. of the profile moved along the shift, the noise held fixed; say so in the manifest."""
    alphas = parse_alphas(args.alphas)
    steps = [GANSource(gan, c + alpha * shift, names=[profile], guidance=args.guidance) for alpha in alphas]
    columns = [np.concatenate(list(step.batches(SWEPT, seed))) for step in steps]
    write_png(out / "sweep.png", grid_of(np.stack(columns, 1).reshape(-1, *columns[0].shape[1:]), len(alphas)))
    manifest = read_json(out / "manifest.json")
    manifest["sweep"] = {"file": "sweep.png", "shift": args.sweep, "shift_digest": sha256_of(args.sweep)}
    manifest["sweep"] |= {"alphas": alphas, "profile": profile, "guidance": args.guidance, "seed": seed}
    manifest["sweep"] |= {"rows": [f"noise of tile {k}" for k in range(SWEPT)], "columns": "alpha, in whole shifts"}
    write_json(out / "manifest.json", manifest)
    print(f"{out / 'sweep.png'}: {profile} along {args.sweep}, alphas {', '.join(f'{a:g}' for a in alphas)}")


def side_by_side(parts: list[np.ndarray], side: int) -> np.ndarray:
    """Return the parts, each (n, H, W, 3), as 4 x 4 grids of tiles of `side` pixels, one tile's third apart."""
    parts = [np.stack([area_resize(tile, side) for tile in part]) for part in parts]
    blank = np.full((side, side, 3), 255, np.uint8)
    blocks = [grid_of(np.concatenate([part, np.repeat(blank[None], COMPARED - len(part), 0)]), 4) for part in parts]
    gap = np.full((len(blocks[0]), side // 3, 3), 255, np.uint8)
    return np.concatenate([piece for block in blocks for piece in (gap, block)][1:], axis=1)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
