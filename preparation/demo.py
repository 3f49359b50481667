"""prepare_data.py demo: the built-in cohort."""

import argparse
from pathlib import Path

from preparation.parts import Commands, add_command

MANUAL = """Make the demo cohort: about 230 small slides and their expression, with a known link between the two.

Reads nothing. Writes into --out: slides/{lung,brain}/GTEX-*.svs (Aperio; one without mpp, one at 40x, one half blank,
one cut short on purpose), rna/ (GTEx GCT in TPM, sample attributes, subject phenotypes, list of coding genes), geo/
(two tables of another platform), truth.csv (the four factors of each donor that genes and slides share), mpp_table.csv
(for the slide without mpp: tiles --mpp_table), configs/ (settings of every later stage at demo size).
The same seed gives the same bytes. A finished cohort is left alone; an interrupted one goes on.

    python prepare_data.py demo --out demo --seed 99
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "demo", "a small cohort in real formats", MANUAL, run)
    add("--out", type=Path, default=Path("demo"), help="folder (default: %(default)s)")
    add("--seed", type=int, default=99, help="another seed, another cohort (default: %(default)s)")
    add("--donors", type=int, default=130, help="how many people (default: %(default)s)")
    add("--slide_px", type=int, default=1024, help="side of a slide in pixels at 0.5 um per pixel")
    add("--workers", type=int, default=2, help="processes that draw (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the demo cohort."""
    from datasets.demo import make_demo

    out = make_demo(args.out, args.seed, args.donors, args.slide_px, args.workers)
    slides = sum(1 for _ in out.glob("slides/*/*.svs"))
    print(f"{out}: demo cohort of {args.donors} donors, {slides} slides, seed {args.seed}; see {out}/truth.csv")
