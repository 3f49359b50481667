"""Make the inputs of every other stage: a demo cohort, tables, tile stores, spots, the classifier's tables.

    python prepare_data.py demo --out demo --seed 99
    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt --tissue Lung \\
        --genes protein_coding_genes.csv --slides slides/lung --out data/lung.csv
    python prepare_data.py tiles --slides slides/lung --out tiles/lung --mpp 0.5 --tile_size 256 --max_tiles 600
    python prepare_data.py cohort --config configs/gan_run_lung.json --out data/cohort.csv

`python prepare_data.py COMMAND --help` says what each reads and writes.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from common.errors import command_parser, run_command

# A module each, by the name of its sub-command: its manual, its flags, its run. By name, as only the one that is asked
# for is loaded: pandas alone takes 0.4 s, and each process that cuts slides loads this file.
COMMANDS = {
    "demo": "preparation.demo",
    "expression": "preparation.expression",
    "tiles": "preparation.tiles",
    "import": "preparation.importing",
    "verify": "preparation.verify",
    "spots": "preparation.spots",
    "cohort": "preparation.cohort",
    "toy": "preparation.toy",
    "export": "preparation.export",
}


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser: one sub-command per kind of input; where `words` begin with one, that one is all it loads."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in [word for word in words[:1] if word in COMMANDS] or COMMANDS:
        importlib.import_module(COMMANDS[name]).add_to(commands)
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Run the chosen sub-command and return its exit status."""
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser(sys.argv[1:])))
