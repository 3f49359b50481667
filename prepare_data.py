"""Make the inputs of every other stage: a demo cohort, tables, tile stores, spots, the classifier's tables.

    python prepare_data.py demo --out demo --seed 99
    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt --tissue Lung \\
        --genes protein_coding_genes.csv --slides slides/lung --out data/lung.csv
    python prepare_data.py tiles --slides slides/lung --out tiles/lung --mpp 0.5 --tile_size 256 --max_tiles 600
    python prepare_data.py cohort --config configs/gan_run_lung.json --out data/cohort.csv

`python prepare_data.py COMMAND --help` says what each reads and writes.
"""

import argparse
import sys

from common.errors import command_parser, run_command
from preparation import cohort, demo, export, expression, importing, spots, tiles, toy, verify

# A module each: its manual, its flags, its run.
COMMANDS = (demo, expression, tiles, importing, verify, spots, cohort, toy, export)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one sub-command per kind of input."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Run the chosen sub-command and return its exit status."""
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
