"""prepare_data.py export: tiles for other tools."""

import argparse
from pathlib import Path

from common.config import add_tile_limits
from common.errors import InputError
from datasets.exports import export_folder, export_shards, numbers_of, stores_of
from datasets.tile_limits import TileLimits
from preparation.parts import Commands, add_command

MANUAL = """Write the tiles of stores for other tools: as pictures, or as shards of WebDataset.

Reads --tiles: a folder of tile stores, or one store; of their tiles those within --min_tissue, --min_sharpness and
--max_pen (all without).
--format folder      <out>/<slide>/*.png and <out>/tiles.csv with the columns file, slide, x, y (pixels at level 0),
                     tissue, mpp, tile_size
--format webdataset  <out>/shard-000000.tar, ...: --shard_size samples each, a sample being <key>.jpg (or .png) as it is
                     in the store and <key>.json with slide, donor, index, x, y, tissue, mpp, tile_size; keys are
                     unique; <out>/shards.json lists the shards. Samples are in the slides' order: shuffle on reading.

    python prepare_data.py export --format folder --tiles tiles/lung --out png/lung
    python prepare_data.py export --format webdataset --tiles tiles/lung --out shards/lung --shard_size 10000
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "export", "write tiles for other tools", MANUAL, run)
    add("--format", choices=["folder", "webdataset"], default="folder", help="folder: PNGs (%(default)s)")
    add("--tiles", required=True, help="a folder of tile stores, or one store (.tar or .json)")
    add("--out", required=True, help="folder to write to")
    add_tile_limits(add)
    add("--shard_size", type=int, default=10_000, help="webdataset: samples in a shard (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the pictures and their list, or the shards and theirs."""
    if args.shard_size < 1:
        raise InputError(f"--shard_size {args.shard_size}: at least 1 was expected")
    limits, stores = TileLimits.of(args), stores_of(args.tiles)
    if args.format == "folder":
        table = export_folder(stores, args.out, limits)
        print(f"{args.out}: {len(table)} tiles of {table['slide'].nunique()} slides; {Path(args.out) / 'tiles.csv'}")
        return
    shards = export_shards(stores, args.out, args.shard_size, limits)
    count, slides = sum(shard["samples"] for shard in shards), sum(map(bool, numbers_of(stores, limits)))
    print(f"{args.out}: {count} tiles of {slides} slides in {len(shards)} shards; {Path(args.out) / 'shards.json'}")
