"""Do the tiles of an RNA-GAN follow the expression they are made from? Held-out patients, floor and ceiling.

    python evaluate_conditioning.py --checkpoint checkpoints/rna-gan_lung.model --config configs/gan_run_lung.json
    python evaluate_conditioning.py --checkpoint checkpoints/rna-gan_spots --config configs/spots/rna-gan.json \\
        --tiles 8 --patients 30 --ceiling sides --nulls torus

For patients that neither the VAE nor the GAN has seen (a row of the table with tiles, so with spots a spot), each
tissue by itself: liveness (the same noise, two patients), retrieval, distances, the round trip from tiles to
expression, morphology, dose-response along shifts, diversity and memorisation (turned copies are not looked for).
Donors who trained either model are refused. Beside a number stand its 95 % interval over patients, what
chance reaches, what real tiles reach against themselves (random halves of a patient's tiles; --ceiling sides: the left
half of a tile against the right), and its null.
Nulls: retrieval, distances, round trip and morphology with patients paired at random (--nulls torus: the array of spots
shifted, because neighbours are alike); the variance explained with tiles dealt to patients at random, 199 times;
dose-response with steps shuffled. Pixel difference, diversity and memorisation have none.
Controls, of one sampling seed: the generator without expression, tiles without colour, colours without tiles.

Reads the checkpoint, its beta-VAE, the config's tables and tile stores.
Writes into --out, by default conditioning/<run>/: metrics.json (each number with sd over sampling seeds, low, high,
chance, ceiling, null_q99, p_value, n) and report.html with the pictures; prints one line that says it in words.
With torchrun, or --parallel, several processes divide the tiles; the result is that of one.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

from common.config import GANSettings, add_fit_scaler, add_parallel, add_tile_limits, load_config
from common.distributed import joined, launch, under_torchrun
from common.errors import InputError, command_parser, run_command
from common.files import make_folder, write_json, write_text
from common.run import pick_device
from common.together import together
from figures.evaluation_page import Pictures, evaluation_page
from models.features import Extractor, load_extractor
from sources.division import agree_on
from sources.evaluation import (
    REAL_TILES,
    TRAIN_TILES,
    Patients,
    Ruler,
    independent,
    open_patients,
    refuse_few,
    seeds_of,
)
from sources.gan import GAN, open_gan
from sources.judgement import Job
from sources.profiles import Profiles
from sources.readers import read_shift


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="an RNA-GAN: .model file (ours, or the published code's), run folder, export",
    )
    parser.add_argument("--config", required=True, help="JSON settings: where the tables and real tiles are")
    parser.add_argument("--vae_checkpoint", help="the RNA-GAN's beta-VAE; default: the one that its settings name")
    add_fit_scaler(parser.add_argument)
    parser.add_argument("--split", choices=("test", "val"), default="test", help="whose donors (default test)")
    parser.add_argument("--tiles", type=int, default=64, help="generated tiles per patient and seed (default 64)")
    add_tile_limits(parser.add_argument)
    parser.add_argument("--sampling_seeds", type=int, default=3, help="sets of generated tiles (default 3)")
    parser.add_argument("--re_pairings", type=int, default=999, help="random pairings of each null (default 999)")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="strength of the expression (default 1: as trained)"
    )
    parser.add_argument("--unconditional", help="a GAN without expression as control; default: the same one without")
    parser.add_argument("--shift", nargs="+", default=[], metavar="FILE", help=".npz of betaVAE_interpolation.py")
    parser.add_argument("--extractor", help="efficientnet_lite0 (default), inception (default with --weights), ...")
    parser.add_argument("--weights", help="the extractor's weights file")
    parser.add_argument("--extractor_side", default="tiles", help="pixels at which it sees tiles; default tiles: as is")
    parser.add_argument("--ceiling", choices=("halves", "sides"), help="default: halves where patients have 2 tiles")
    parser.add_argument("--nulls", choices=("shuffle", "torus"), help="default: torus where the table has array_x")
    parser.add_argument("--patients", type=int, default=0, help="seeded patients for retrieval, distances; default all")
    parser.add_argument("--seed", type=int, help="of noise and draws; default: the config's")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    add_parallel(parser.add_argument)
    parser.add_argument("--out", help="folder to write to; default conditioning/<run>")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Open everything, judge each tissue, write both files, print the line."""
    if args.parallel and not under_torchrun():
        return launch(args.parallel, [__file__, *args.words])
    for name, least in (("tiles", 2), ("sampling_seeds", 1), ("re_pairings", 19), ("patients", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: at least {least} was expected")
    if not 0 <= args.guidance < math.inf:
        raise InputError(f"--guidance {args.guidance}: 0 (no expression) or more was expected; 1 is as trained")
    cfg = load_config(GANSettings, args.config, args)
    device = pick_device(cfg.device)
    with joined(device) as ranks:
        # Open everything.
        with together(main_first=True):
            gan = open_gan(args.checkpoint, device)
            if not gan.conditional:
                raise InputError(
                    f"{gan.path}: takes no expression, an RNA-GAN was expected; name this one with --unconditional"
                )
            control = control_of(args, gan, device)
            if args.guidance != 1 and any(g.generator.rule.standardise == "batch" for g in (gan, control[0])):
                raise InputError("--guidance: the published form (standardise = batch) has none; leave it at 1")
            held_out, train, profiles = open_all_patients(args, cfg, gan, control[0])
            out = make_folder(args.out or Path("conditioning", gan.run)) if ranks.main else None
            shifts = {Path(path).stem.removeprefix("shift_"): read_shift(path, profiles) for path in args.shift}
            ruler = Ruler(extractor_of(args, gan, device))

        # Judge each tissue; the ranks divide the tiles.
        tissues, pictures = {}, {}
        for tissue, patients in held_out.items():
            looked_at = [[p.names, [len(x) for x in p.tiles]] for p in (patients, train[tissue])]
            agree_on(tissue, [gan.describe(), ruler.extractor.describe(), looked_at])
            job = Job(args, cfg.seed, gan, control, ruler, patients, train[tissue], shifts, tissue)
            tissues[tissue], drawn = job.run()
            pictures[tissue] = Pictures(**drawn)
        if not ranks.main:
            return None

        # Report.
        about = {
            "gan": gan.describe(),
            "control": control[1],
            "extractor": ruler.extractor.describe(),
            "seed": cfg.seed,
            "split": args.split,
            "tiles": args.tiles,
            "sampling_seeds": seeds_of(cfg.seed, args.sampling_seeds),
            "guidance": args.guidance,
            "re_pairings": args.re_pairings,
        }
        first = next(iter(tissues.values()))
        line = f"{gan.run}: " + " | ".join(
            (f"{tissue}: " if len(tissues) > 1 else "") + m["verdict"]["text"] for tissue, m in tissues.items()
        )
        write_json(out / "metrics.json", {**about, "summary": line, **first, "tissues": tissues})
        write_text(out / "report.html", evaluation_page(gan.run, line, about, tissues, pictures))
        print(line)
    return None


def open_all_patients(
    args: argparse.Namespace, cfg: GANSettings, gan: GAN, control: GAN
) -> tuple[dict[str, Patients], dict[str, Patients], Profiles]:
    """Return tissue -> held-out patients, tissue -> training patients, and their table's profiles."""
    most = max(REAL_TILES, args.tiles)
    held_out, profiles = open_patients(gan, cfg, args.vae_checkpoint, args.split, cfg.seed, most)
    for patients in held_out.values():
        control.refuse_trained(patients.cohort)
    held_out = {tissue: independent(patients, tissue) for tissue, patients in held_out.items()}
    tables = ", ".join(cfg.path_csv)
    refuse_few(held_out, args.split, tables)
    train, _ = open_patients(gan, cfg, args.vae_checkpoint, "train", cfg.seed, REAL_TILES, TRAIN_TILES)
    for tissue in held_out:
        if tissue not in train:
            raise InputError(f"{tables}: no training patients of {tissue}; the round trip needs them")
    return held_out, train, profiles


def control_of(args: argparse.Namespace, gan: GAN, device: torch.device) -> tuple[GAN, str]:
    """Return the generator without expression and what it is."""
    if not args.unconditional:
        dropout = gan.state["settings"].get("cond_dropout")
        trained = f"trained with {dropout:.0%} of tiles without" if dropout else "not trained without: the null is 0"
        return gan, f"{gan.run} without expression ({trained})"
    other = open_gan(args.unconditional, device)
    if other.state["img_size"] != gan.state["img_size"]:
        raise InputError(
            f"{other.path}: tiles of {other.state['img_size']} px, {gan.path} draws {gan.state['img_size']}; name a "
            "GAN of the same size"
        )
    return other, f"{other.run}{' without expression' if other.conditional else ''}"


def extractor_of(args: argparse.Namespace, gan: GAN, device: torch.device) -> Extractor:
    """Return the extractor that the flags ask for."""
    name = args.extractor or ("inception" if args.weights else "efficientnet_lite0")
    if args.extractor_side == "tiles":
        return load_extractor(name, args.weights, device, gan.state["img_size"])
    if not args.extractor_side.isdigit() or int(args.extractor_side) < 1:
        raise InputError(f"--extractor_side {args.extractor_side}: expected a number of pixels, or 'tiles'")
    return load_extractor(name, args.weights, device, int(args.extractor_side))


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
