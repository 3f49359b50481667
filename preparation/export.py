"""prepare_data.py export: tiles and models for other tools."""

import argparse
from pathlib import Path

from common.config import DataSettings, add_fit_scaler, add_tile_limits
from common.errors import InputError
from datasets.exports import export_folder, export_shards, numbers_of, stores_of
from datasets.tile_limits import TileLimits
from preparation.parts import Commands, add_command

MANUAL = """Write tiles or a model for other tools: as pictures, shards of WebDataset, safetensors with a model card.

Reads --tiles: a folder of tile stores, or one store, and of their tiles those within --min_tissue, --min_sharpness and
--max_pen (all without); or --checkpoint: a GAN or a beta-VAE.
--format folder      <out>/<slide>/*.png and <out>/tiles.csv with the columns file, slide, x, y (pixels at level 0),
                     tissue, mpp, tile_size
--format webdataset  <out>/shard-000000.tar, ...: --shard_size samples each, a sample being <key>.jpg (or .png) as it is
                     in the store and <key>.json with slide, donor, index, x, y, tissue, mpp, tile_size; keys are
                     unique; <out>/shards.json lists the shards. Samples are in the slides' order: shuffle on reading.

--format safetensors model.safetensors (weights), config.json (all else), README.md (a model card: digests, counts of
                     donors without their names, settings, what metrics.json beside the run say, how to load it); an
                     RNA-GAN's beta-VAE in betavae/. The folder can be given to --checkpoint and --vae_checkpoint again.
A published beta-VAE (weights only) becomes with --fit_scaler one with genes and scaler, once and for all.

    python prepare_data.py export --format folder --tiles tiles/lung --out png/lung
    python prepare_data.py export --format webdataset --tiles tiles/lung --out shards/lung --shard_size 10000
    python prepare_data.py export --format safetensors --checkpoint checkpoints/rna-gan_lung --out export/rna-gan_lung
"""

FORMATS = ("folder", "webdataset", "safetensors")


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "export", "write tiles or a model for other tools", MANUAL, run)
    add("--format", choices=FORMATS, help="folder: PNGs (default with --tiles), safetensors with --checkpoint")
    add("--tiles", help="a folder of tile stores, or one store (.tar or .json)")
    add("--out", required=True, help="folder to write to")
    add_tile_limits(add)
    add("--shard_size", type=int, default=10_000, help="webdataset: samples in a shard (%(default)s)")
    add("--checkpoint", help="a GAN or a beta-VAE: a file or its run folder")
    add("--vae_checkpoint", help="an RNA-GAN's beta-VAE; default: the one that its settings name")
    add_fit_scaler(add)
    add("--split_seed", type=int, help="of the donors of --fit_scaler (99)")


def run(args: argparse.Namespace) -> None:
    """Write the pictures and their list, the shards and theirs, or the model."""
    fmt = args.format or ("safetensors" if args.checkpoint else "folder")
    wanted, other = ("checkpoint", "tiles") if fmt == "safetensors" else ("tiles", "checkpoint")
    if not getattr(args, wanted) or getattr(args, other):
        raise InputError(f"--format {fmt} takes --{wanted}, and no --{other}; see prepare_data.py export --help")
    if fmt == "safetensors":
        from sources.export import export_model  # torch takes seconds to import
        from sources.vae import Fit

        seed = DataSettings.split_seed if args.split_seed is None else args.split_seed
        fit = Fit(tuple(args.fit_scaler or ()), seed)
        for path in export_model(args.checkpoint, args.out, args.vae_checkpoint, fit):
            print(f"{path}: with config.json and README.md; read back, the same")
        return
    if args.shard_size < 1:
        raise InputError(f"--shard_size {args.shard_size}: at least 1 was expected")
    limits, stores = TileLimits.of(args), stores_of(args.tiles)
    if fmt == "folder":
        table = export_folder(stores, args.out, limits)
        print(f"{args.out}: {len(table)} tiles of {table['slide'].nunique()} slides; {Path(args.out) / 'tiles.csv'}")
        return
    shards = export_shards(stores, args.out, args.shard_size, limits)
    count, slides = sum(shard["samples"] for shard in shards), sum(map(bool, numbers_of(stores, limits)))
    print(f"{args.out}: {count} tiles of {slides} slides in {len(shards)} shards; {Path(args.out) / 'shards.json'}")
