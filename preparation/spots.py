"""prepare_data.py spots: from spatial transcriptomics to a table and one tile per spot."""

import argparse

from common.files import write_json
from datasets.expression import write_expression
from datasets.spots import SpotSettings, prepare_spots, read_groups, read_sections, summarise_spots
from datasets.tiles import SUFFIX
from preparation.parts import Commands, add_command, add_genes, genes_of, table_path

MANUAL = """Make an expression table and tile stores of spatial transcriptomics: a spot is a sample with one tile.

Reads --input: one folder of ST sections, with images/<section>.jpg, counts/<section>.tsv.gz (spots named XxY in rows,
genes in columns, raw counts) and spots/<section>_selection.tsv (x, y, pixel_x, pixel_y), or one or more folders of 10x
Visium, with spatial/ and *filtered_feature_bc_matrix.h5, each with its full-resolution image in --image.
Writes --out, the table (.csv or .h5ad), beside it <name>.report.json (pixel sizes found; spots and genes left out, and
why), and a store of one tile for each spot into --tiles: the square of --tile_um around it. Samples and stores are
named <section>_<X>x<Y>, or <section>_<barcode>; donor is the section unless --group says more. Genes are mapped and
chosen as by `prepare_data.py expression`; one that a section's matrix lacks is left out of all. CPM are shares of all
molecules of a spot, whatever genes are kept; rows that --duplicates first does not take are copies, and not counted.
With --test the column assigned_split divides the spots, and wins over the split by donor where the table is read: the
named sections are test; of the others --val_share are val, in whole blocks of neighbours; the rest is train.

    python prepare_data.py spots --input her2st --pitch 200 --mapping gene_mapping.csv --top_genes 1000 --test C4 \\
        --out data/her2st.h5ad --tiles tiles/her2st
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    default = SpotSettings()
    add = add_command(commands, "spots", "make a table and tile stores of spatial transcriptomics", MANUAL, run)
    add("--input", nargs="+", required=True, help="the ST folder, or the Visium folders")
    add("--image", nargs="+", default=[], help="Visium: the full-resolution image of each folder, in the same order")
    add("--out", required=True, help="the table to write, .csv or .h5ad")
    add("--tiles", required=True, help="folder for the tile stores")
    add("--mpp", type=float, help="micrometres per pixel of the images; without it, from the pitch of the array")
    add("--pitch", type=float, help="um between neighbouring spots; known for Visium (100), needed for ST (200)")
    add("--tile_um", type=float, default=default.tile_um, help="side of a spot's square in um (%(default)g)")
    add("--img_size", type=int, default=default.img_size, help="side of the tile in pixels (%(default)s)")
    add("--format", choices=list(SUFFIX), default="jpeg", help="of the tiles in the store (%(default)s)")
    add("--min_counts", type=int, default=default.min_counts, help="of a spot, over all genes (%(default)s)")
    add("--convert", choices=["cpm", "none"], default=default.convert, help="none: keep counts (%(default)s)")
    add_genes(add)
    add(
        "--min_spots", type=float, default=default.min_spots, help="share of training spots with the gene (%(default)s)"
    )
    add("--top_genes", type=int, default=0, help="keep so many, that vary most between training spots; 0: all")
    add("--test", nargs="+", default=[], metavar="SECTION", help="sections held out for testing")
    add("--val_share", type=float, default=default.val_share, help="of the other sections' spots (%(default)s)")
    add("--group", nargs="+", default=[], metavar="[SECTION=]PATIENT", help="donor of all sections, or of each named")
    add("--tissue", help="of all spots; without it, the stem of --out")
    add("--seed", type=int, default=default.seed, help="of the validation blocks (%(default)s)")
    add(
        "--split_seed", type=int, default=default.split_seed, help="of the split by donor, without --test (%(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the stores, the table and its report; print what was found."""
    from tqdm import tqdm

    out = table_path(args.out)
    settings = SpotSettings(
        mpp=args.mpp,
        pitch_um=args.pitch,
        tile_um=args.tile_um,
        img_size=args.img_size,
        min_counts=args.min_counts,
        convert=args.convert,
        min_spots=args.min_spots,
        top_genes=args.top_genes,
        test=args.test,
        val_share=args.val_share,
        group=read_groups(args.group),
        tissue=args.tissue or out.stem,
        seed=args.seed,
        split_seed=args.split_seed,
    )
    settings.check()
    source = " ".join(args.input)
    cohort = prepare_spots(read_sections(args.input, args.image), settings, **genes_of(args), source=source)
    for _ in tqdm(cohort.write_tiles(args.tiles, args.format), "tiles", len(cohort.table), unit="spot", disable=None):
        pass
    write_expression(cohort.table, out)
    report = out.with_name(f"{out.stem}.report.json")
    write_json(report, cohort.report)
    print(summarise_spots(cohort.report))
    print(f"{out}: {len(cohort.table)} spots x {len(cohort.table.genes)} genes; {report}; tiles in {args.tiles}")
