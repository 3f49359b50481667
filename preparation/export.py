"""prepare_data.py export: tiles for other tools."""

import argparse
from pathlib import Path

from datasets.pictures import export_folder
from preparation.parts import Commands, add_command

MANUAL = """Write the tiles of a store as pictures for other tools.

Reads --tiles: a folder of tile stores, or one store. Writes <out>/<slide>/*.png and <out>/tiles.csv with the columns
file, slide, x, y (pixels at level 0), tissue, mpp, tile_size.

    python prepare_data.py export --format folder --tiles tiles/lung --out png/lung
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "export", "write tiles as pictures", MANUAL, run)
    add("--format", choices=["folder"], default="folder", help="folder: PNGs (%(default)s)")
    add("--tiles", required=True, help="a folder of tile stores, or one store (.tar or .json)")
    add("--out", required=True, help="folder for the pictures")


def run(args: argparse.Namespace) -> None:
    """Write the pictures and their list."""
    table = export_folder(args.tiles, args.out)
    print(f"{args.out}: {len(table)} tiles of {table['slide'].nunique()} slides; {Path(args.out) / 'tiles.csv'}")
