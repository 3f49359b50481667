"""prepare_data.py toy: the classifier's pictures and tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.config import add_tile_limits
from datasets.expression import read_expression, splits_of
from datasets.keys import slide_key
from datasets.pictures import GENERATED_TABLE, REAL_TABLE, write_toy
from datasets.tile_limits import TileLimits
from preparation.parts import Commands, add_command

MANUAL = f"""Make the classifier's pictures and tables from real and generated tiles.

Reads --real: folders of tile stores, each named after its class (lung, brain), and --generated: folders of
generate_tissue_images.py (their classes from their paths, such as rna-gan_lung; their donors from manifest.json, else
the folder's name). With --split real tiles are of that split's donors alone: by --split_seed and the donor in the
slide's name, or as the rows of --table say (columns donor, assigned_split). Real tiles are those within --min_tissue,
--min_sharpness and --max_pen (all without).
Writes <out>/real/<class>/*.png, <out>/rna-gan/<class>/*.png and the tables <out>/{REAL_TABLE} and
<out>/{GENERATED_TABLE} with the columns wsi_file_names (relative to --out), Labels, group (donor), of real tiles
split, of generated ones made_by (the GAN's checkpoint), made_digest, made_seed (the noise's). A held-out donor or slide
that such a GAN has seen is refused.
wsi_model.py finds the tables there by their bare names.

    python prepare_data.py toy --real tiles/lung tiles/brain --out images_form \\
        --generated generated/rna-gan_lung generated/rna-gan_brain
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "toy", "make the classifier's pictures and tables", MANUAL, run)
    add("--real", nargs="+", required=True, help="folders of tile stores, one per class")
    add("--generated", nargs="+", default=[], help="folders of generated tiles")
    add("--out", required=True, help="folder for the pictures and the tables")
    add("--per_class", type=int, default=0, help="at most so many tiles of a class, from all donors in turn; 0: all")
    add("--img_size", type=int, default=0, help="side of the pictures; 0: that of the generated tiles")
    add("--split", choices=["train", "val", "test"], help="real tiles of these donors alone; test: held out (all)")
    add_tile_limits(add)
    add("--table", nargs="+", default=[], help="expression tables that say donor and split of the slides")
    add("--split_seed", type=int, default=99, help="of the split: that of the beta-VAE and the GANs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write pictures and tables; print how many of what."""
    known = who_is_who(args.table, args.split_seed)
    how = (args.per_class, args.img_size, args.split, args.split_seed, known, TileLimits.of(args))
    tables = write_toy(args.real, args.generated, args.out, *how)
    for name, table in tables.items():
        counts = ", ".join(f"{n} {label}" for label, n in table["Labels"].value_counts().sort_index().items())
        print(f"{Path(args.out) / name}: {counts} from {table['group'].nunique()} donors")


def who_is_who(tables: Sequence[str], split_seed: int) -> dict[str, tuple[str, str]]:
    """Return slide -> (donor, split) as the expression tables say; a table's assigned_split wins over `split_seed`."""
    found = {}
    for path in tables:
        obs = read_expression(path).obs
        for slide, donor, split in zip(
            obs["wsi_file_name"], obs["donor"], splits_of(obs, split_seed, path), strict=True
        ):
            found[slide_key(str(slide))] = (str(donor), split)
    return found
