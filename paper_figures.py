"""Draw the figures and tables of the paper, and the page of the demo; one sub-command each.

    python paper_figures.py all --study demo
    python paper_figures.py shift --study demo --out drawn
    python paper_figures.py report --demo demo

Each figure is <out>/<name>.pdf and .png (300 dpi), the table behind it .csv, what is said under it .txt: n, seed,
extractor and digests. They are made from the folder's runs and stores, are the same bytes each time, and compute
nothing that is there already; where an input is missing, the command that makes it is named. The folder has the layout
that the commands write: configs/, checkpoints/, fid/, conditioning/, classifier/, generated/. So has the repository's
own (--study .).

`python paper_figures.py COMMAND --help` says what each reads and writes.
"""

import argparse
import sys
from functools import partial
from types import ModuleType

from common.errors import EXIT_BAD_INPUT, EXIT_SOME_FAILED, InputError, command_parser, run_command, warn
from paper import (
    architecture,
    classifier,
    conditioning,
    epochs,
    fid_matrix,
    geo,
    latent,
    patients,
    report,
    shift,
    tiles,
)
from paper.parts import Ask, add_figure, asked, write

# A module each: its name, its manual, and `draw`, which returns the figures.
FIGURES = (architecture, latent, shift, tiles, fid_matrix, patients, epochs, conditioning, geo, classifier)
ALL = """all  Every figure that can be made; those that cannot are named, with the command that makes what is missing.

    python paper_figures.py all --study demo

Exit status: 0 all were drawn, 3 some were, 2 none.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one sub-command per figure."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for figure in FIGURES:
        add_figure(commands, figure.NAME, figure.WHAT, figure.__doc__, partial(draw_one, figure))
    add_figure(commands, "all", "every figure that can be made", ALL, draw_all)
    report.add_to(commands)
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Run the chosen sub-command and return its exit status."""
    return args.run(args)


def draw_one(figure: ModuleType, args: argparse.Namespace) -> None:
    """Draw one figure."""
    ask = asked(args)
    write(ask.out, figure.draw(ask))


def draw_all(args: argparse.Namespace) -> int:
    """Draw every figure that can be made; return the exit status."""
    ask, failed = asked(args), 0
    for figure in FIGURES:
        failed += not drawn(figure, ask)
    return 0 if not failed else EXIT_SOME_FAILED if failed < len(FIGURES) else EXIT_BAD_INPUT


def drawn(figure: ModuleType, ask: Ask) -> bool:
    """Draw one of all, and say whether it could be."""
    try:
        write(ask.out, figure.draw(ask))
    except InputError as error:
        warn(f"{figure.NAME} is left out: {error}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
