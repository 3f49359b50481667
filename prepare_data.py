"""Make the inputs of every other stage: a demo cohort, expression tables, tile stores, spots, the classifier's tables.

    python prepare_data.py demo --out demo --seed 99
    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt --tissue Lung \\
        --genes protein_coding_genes.csv --slides slides/lung --out data/lung.csv
    python prepare_data.py tiles --slides slides/lung --out tiles/lung --mpp 0.5 --tile_size 256 --max_tiles 600

`python prepare_data.py COMMAND --help` says what each reads and writes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from common.errors import EXIT_DONE, EXIT_SOME_FAILED, InputError, command_parser, run_command, warn
from common.files import make_folder, write_json
from datasets.expression import write_expression
from datasets.extraction import Job, Outcome, TileSettings
from datasets.jobs import cut_slides, write_report
from datasets.keys import slide_key
from datasets.pictures import GENERATED_TABLE, REAL_TABLE, export_folder, write_toy
from datasets.prepare_table import prepare_table, summarise
from datasets.slides import check_mpp, find_slides, read_mpp_table
from datasets.spots import SpotSettings, prepare_spots, read_groups, read_sections, summarise_spots
from datasets.tiles import SUFFIX
from datasets.units import UNITS

Commands = argparse._SubParsersAction


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one sub-command per kind of input."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_expression(commands)
    _add_tiles(commands)
    _add_spots(commands)
    _add_toy(commands)
    _add_export(commands)
    return parser


def _add_command(
    commands: Commands, name: str, what: str, manual: str, run: Callable[[argparse.Namespace], int | None]
) -> Callable[..., argparse.Action]:
    """Add a sub-command with its manual and --debug; return what adds its flags."""
    parser = commands.add_parser(
        name, help=what, description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser.set_defaults(run=run)
    return parser.add_argument


def _add_genes(add: Callable[..., argparse.Action]) -> None:
    """Add the flags that choose and name genes, of `expression` and `spots`."""
    add("--genes", help="genes to keep: CSV with a column Gene (rna_ENSG....v), one id a line, or a GTF")
    add("--biotype", help="of the genes of a GTF: protein_coding")
    add("--mapping", help="symbols to Ensembl ids: a table with a column of each, or a GTF")
    add("--duplicates", choices=["sum", "refuse"], help="default: sum, but refuse the very same Ensembl id twice")


def _genes_of(args: argparse.Namespace) -> dict[str, str | None]:
    """Return those flags by name."""
    return {name: getattr(args, name) for name in ("genes", "biotype", "mapping", "duplicates")}


def _table_path(out: str) -> Path:
    """Return the path of --out. InputError where it is of a form that is not written, before anything is read."""
    if Path(out).suffix not in (".csv", ".h5ad"):
        raise InputError(f"{out}: tables are written as .csv or .h5ad; name the output accordingly")
    return Path(out)


DEMO_MANUAL = """Make the demo cohort: about 230 small slides and their expression, with a known link between the two.

Reads nothing. Writes into --out: slides/{lung,brain}/GTEX-*.svs (Aperio; one without mpp, one at 40x, one half blank,
one cut short on purpose), rna/ (GTEx GCT in TPM, sample attributes, subject phenotypes, list of coding genes), geo/
(two tables of another platform), truth.csv (the four factors of each donor that genes and slides share), mpp_table.csv
(for the slide without mpp: tiles --mpp_table), configs/ (settings of every later stage at demo size).
The same seed gives the same bytes. A finished cohort is left alone; an interrupted one goes on.

    python prepare_data.py demo --out demo --seed 99
"""


def _add_demo(commands: Commands) -> None:
    add = _add_command(commands, "demo", "a small cohort in real formats", DEMO_MANUAL, run_demo)
    add("--out", type=Path, default=Path("demo"), help="folder (default: %(default)s)")
    add("--seed", type=int, default=99, help="another seed, another cohort (default: %(default)s)")
    add("--donors", type=int, default=130, help="how many people (default: %(default)s)")
    add("--slide_px", type=int, default=1024, help="side of a slide in pixels at 0.5 um per pixel")
    add("--workers", type=int, default=2, help="processes that draw (default: %(default)s)")


def run_demo(args: argparse.Namespace) -> None:
    """Write the demo cohort."""
    from datasets.demo import make_demo

    out = make_demo(args.out, args.seed, args.donors, args.slide_px, args.workers)
    slides = sum(1 for _ in out.glob("slides/*/*.svs"))
    print(f"{out}: demo cohort of {args.donors} donors, {slides} slides, seed {args.seed}; see {out}/truth.csv")


EXPRESSION_MANUAL = """Turn a matrix of any common form into an expression table: samples x genes, linear units.

Reads --input: GTEx GCT, GEO and other text matrices (genes in rows or columns; comma, tab or semicolon; gzip), parquet,
h5ad. Says which orientation, gene identifiers and unit it found; --orientation, --id and --unit overrule.
Writes --out (.csv in the reference's form, or .h5ad) and beside it <name>.report.json: what was mapped, summed and left
out. Rows of one gene are summed, a sample twice is refused, a missing gene is left out and never filled with zeros.
Logged values are brought back to linear; counts stay counts unless --convert cpm.
A column assigned_split of the table (train, val or test), where it is not empty, wins over the split by donor in every
stage that reads the table; `spots --test` fills it, and so may you.

    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt \\
        --phenotypes SubjectPhenotypesDS.txt --tissue Lung --genes protein_coding_genes.csv --slides slides/lung \\
        --out data/lung.csv
"""


def _add_expression(commands: Commands) -> None:
    add = _add_command(commands, "expression", "make an expression table", EXPRESSION_MANUAL, run_expression)
    add("--input", required=True, help="the matrix")
    add("--out", required=True, help="the table to write, .csv or .h5ad")
    add("--attributes", help="GTEx sample attributes: SAMPID, SMTSD (site), SMTS (organ)")
    add("--phenotypes", help="GTEx subject phenotypes: SUBJID, SEX, AGE")
    add("--tissue", nargs="+", default=[], help='keep samples of these sites or organs: Lung, "Brain - Cortex"')
    _add_genes(add)
    add("--slides", help="folder or list of slides: keep the samples that have one, by donor and site")
    add("--keep_unmatched", action="store_true", help="with --slides: keep samples without slide too")
    add("--unit", choices=UNITS, help="unit of the input; log2p1 is log2(x + 1)")
    add("--orientation", choices=["genes_in_rows", "genes_in_columns"])
    add("--id", choices=["ensembl", "symbol"], help="how the input names genes")
    add("--missing", choices=["refuse", "drop"], default="refuse", help="drop: leave out genes that lack a value")
    add("--convert", choices=["tpm", "cpm"], help="scale to sums of 10^6: tpm from FPKM, cpm from counts")


def run_expression(args: argparse.Namespace) -> None:
    """Write the table and its report; print what was found."""
    out = _table_path(args.out)
    table, report = prepare_table(
        args.input,
        attributes=args.attributes,
        phenotypes=args.phenotypes,
        tissue=args.tissue,
        slides=args.slides,
        keep_unmatched=args.keep_unmatched,
        unit=args.unit,
        orientation=args.orientation and args.orientation.removeprefix("genes_in_"),
        identifiers=args.id,
        missing=args.missing,
        convert=args.convert,
        **_genes_of(args),
    )
    write_expression(table, out)
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    print(summarise(report))
    print(f"{out}: {len(table)} samples x {len(table.genes)} genes; {out.with_name(f'{out.stem}.report.json')}")


TILES_MANUAL = """Cut slides into tiles of one physical size and keep them in tile stores.

Reads --slides: a folder (with its sub-folders) or one slide, in any form that OpenSlide opens. Finds the tissue at low
resolution, lays a grid in micrometres over it, leaves out blank, blurred and damaged tiles, and takes up to --max_tiles
spread over the tissue. Micrometres per pixel come from the slide's line in --mpp_table, else from its file, else from
--slide_mpp; a slide without any is refused (its nominal magnification is never taken for it).
Writes <out>/<slide>.tar and .json (one tile store per slide), <out>/report.csv (one row per slide: tiles, mpp, what was
left out and why) and <out>/previews/<slide>.png (tissue in green, tiles in blue).
A slide that fails costs itself; exit status 3 says that some did, 2 that all did. The same command again keeps what is
finished.

    python prepare_data.py tiles --slides slides/lung --out tiles/lung --mpp 0.5 --tile_size 256 --max_tiles 600 \\
        --workers 2
"""


def _add_tiles(commands: Commands) -> None:
    default = TileSettings()
    add = _add_command(commands, "tiles", "cut slides into tile stores", TILES_MANUAL, run_tiles)
    add("--slides", required=True, help="folder of slides, or one slide")
    add("--out", required=True, help="folder for the tile stores")
    add("--mpp", type=float, default=default.mpp, help="micrometres per pixel of the tiles (%(default)s)")
    add("--tile_size", type=int, default=default.tile_size, help="their side in pixels (%(default)s)")
    add("--max_tiles", type=int, default=default.max_tiles, help="at most so many of a slide; 0: all (%(default)s)")
    add("--min_tissue", type=float, default=default.min_tissue, help="least tissue share of a tile (%(default)s)")
    add(
        "--min_sharpness", type=float, default=default.min_sharpness, help="0 to 1; 0 keeps blurred tiles (%(default)s)"
    )
    add("--format", choices=list(SUFFIX), default=default.fmt, help="of the tiles in the store (%(default)s)")
    add("--quality", type=int, default=default.quality, help="of JPEG tiles, always 4:4:4 (%(default)s)")
    add("--slide_mpp", type=float, help="micrometres per pixel at level 0 of slides that do not state theirs")
    add("--mpp_table", help="the same for named slides: a CSV with columns slide, mpp; wins over the file")
    add("--workers", type=int, default=1, help="slides cut at a time, each in a process; 0: in this one (%(default)s)")
    add("--slide_timeout", type=float, default=0, help="give a slide up after so many seconds; 0: never (%(default)s)")
    add("--restart", action="store_true", help="cut finished slides again, with whatever settings")


def run_tiles(args: argparse.Namespace) -> int:
    """Cut the slides, write the report, name the slides that failed; return the exit status."""
    from tqdm import tqdm

    settings = TileSettings(
        args.mpp, args.tile_size, args.max_tiles, args.min_tissue, args.min_sharpness, args.format, args.quality
    )
    settings.check()
    if args.workers < 0:
        raise InputError(f"--workers {args.workers}: a number of processes was expected, 0: cut in this one")
    if not args.slide_timeout >= 0:
        raise InputError(f"--slide_timeout {args.slide_timeout:g}: seconds were expected, 0: never give up")
    if args.slide_mpp is not None:
        check_mpp(args.slide_mpp, "--slide_mpp")
    table = read_mpp_table(args.mpp_table) if args.mpp_table else {}
    slides, out = find_slides(args.slides), Path(args.out)
    jobs = [Job(path, out, settings, table.get(slide_key(path.name)), args.slide_mpp) for path in slides]
    make_folder(out)
    outcomes: list[Outcome] = []
    try:
        with tqdm(total=len(jobs), desc="tiles", unit="slide", disable=None) as bar:
            for outcome in cut_slides(jobs, args.workers, args.slide_timeout, args.restart):
                outcomes.append(outcome)
                if outcome.status == "failed":
                    bar.clear()
                    warn(outcome.reason)
                bar.update()
                bar.set_postfix(tiles=sum(o.tiles for o in outcomes))
    finally:
        if outcomes:
            write_report(out / "report.csv", outcomes)
    failed = [o for o in outcomes if o.status == "failed"]
    if len(failed) == len(outcomes):
        raise InputError(f"{args.slides}: no tiles from any of {len(failed)} slides; the first: {failed[0].reason}")
    print(
        f"{out}: {sum(o.tiles for o in outcomes)} tiles of {len(outcomes) - len(failed)} slides; "
        f"{len(failed)} failed; {out / 'report.csv'}"
    )
    return EXIT_SOME_FAILED if failed else EXIT_DONE


SPOTS_MANUAL = """Make an expression table and tile stores of spatial transcriptomics: a spot is a sample with one tile.

Reads --input: one folder of ST sections, with images/<section>.jpg, counts/<section>.tsv.gz (spots named XxY in rows,
genes in columns, raw counts) and spots/<section>_selection.tsv (x, y, pixel_x, pixel_y), or one or more folders of 10x
Visium, with spatial/ and *filtered_feature_bc_matrix.h5, each with its full-resolution image in --image.
Writes --out, the table (.csv or .h5ad), beside it <name>.report.json (pixel sizes found; spots and genes left out, and
why), and a store of one tile for each spot into --tiles: the square of --tile_um around it. Samples and stores are
named <section>_<X>x<Y>, or <section>_<barcode>; donor is the section unless --group says more. Genes are mapped and
chosen as by `prepare_data.py expression`; one that a section's matrix lacks is left out of all.
With --test the column assigned_split divides the spots, and wins over the split by donor where the table is read: the
named sections are test; of the others --val_share are val, in whole blocks of neighbours; the rest is train.

    python prepare_data.py spots --input her2st --pitch 200 --mapping gene_mapping.csv --top_genes 1000 --test C4 \\
        --out data/her2st.h5ad --tiles tiles/her2st
"""


def _add_spots(commands: Commands) -> None:
    default = SpotSettings()
    add = _add_command(
        commands, "spots", "make a table and tile stores of spatial transcriptomics", SPOTS_MANUAL, run_spots
    )
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
    _add_genes(add)
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


def run_spots(args: argparse.Namespace) -> None:
    """Write the stores, the table and its report; print what was found."""
    from tqdm import tqdm

    out = _table_path(args.out)
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
    cohort = prepare_spots(read_sections(args.input, args.image), settings, **_genes_of(args), source=source)
    for _ in tqdm(cohort.write_tiles(args.tiles, args.format), "tiles", len(cohort.table), unit="spot", disable=None):
        pass
    write_expression(cohort.table, out)
    report = out.with_name(f"{out.stem}.report.json")
    write_json(report, cohort.report)
    print(summarise_spots(cohort.report))
    print(f"{out}: {len(cohort.table)} spots x {len(cohort.table.genes)} genes; {report}; tiles in {args.tiles}")


TOY_MANUAL = f"""Make the classifier's pictures and tables from real and generated tiles.

Reads --real: folders of tile stores, each named after its class (lung, brain), and --generated: folders of
generate_tissue_images.py (their classes from their paths, such as rna-gan_lung; their donors from manifest.json, else
the folder's name). Writes <out>/real/<class>/*.png, <out>/rna-gan/<class>/*.png and the tables <out>/{REAL_TABLE} and
<out>/{GENERATED_TABLE} with the columns wsi_file_names (relative to --out), Labels, group (donor).
wsi_model.py finds the tables there by their bare names.

    python prepare_data.py toy --real tiles/lung tiles/brain --out images_form \\
        --generated generated/rna-gan_lung generated/rna-gan_brain
"""


def _add_toy(commands: Commands) -> None:
    add = _add_command(commands, "toy", "make the classifier's pictures and tables", TOY_MANUAL, run_toy)
    add("--real", nargs="+", required=True, help="folders of tile stores, one per class")
    add("--generated", nargs="+", default=[], help="folders of generated tiles")
    add("--out", required=True, help="folder for the pictures and the tables")
    add("--per_class", type=int, default=0, help="at most so many tiles of a class, from all donors in turn; 0: all")
    add("--img_size", type=int, default=0, help="side of the pictures; 0: that of the generated tiles")
    add("--split", choices=["train", "val", "test"], help="real tiles of these donors alone; test: held out (all)")
    add("--split_seed", type=int, default=99, help="of the split: that of the beta-VAE and the GANs (%(default)s)")


def run_toy(args: argparse.Namespace) -> None:
    """Write pictures and tables; print how many of what."""
    sizes = (args.per_class, args.img_size)
    for name, table in write_toy(args.real, args.generated, args.out, *sizes, args.split, args.split_seed).items():
        counts = ", ".join(f"{n} {label}" for label, n in table["Labels"].value_counts().sort_index().items())
        print(f"{Path(args.out) / name}: {counts} from {table['group'].nunique()} donors")


EXPORT_MANUAL = """Write the tiles of a store as pictures for other tools.

Reads --tiles: a folder of tile stores, or one store. Writes <out>/<slide>/*.png and <out>/tiles.csv with the columns
file, slide, x, y (pixels at level 0), tissue, mpp, tile_size.

    python prepare_data.py export --format folder --tiles tiles/lung --out png/lung
"""


def _add_export(commands: Commands) -> None:
    add = _add_command(commands, "export", "write tiles as pictures", EXPORT_MANUAL, run_export)
    add("--format", choices=["folder"], default="folder", help="folder: PNGs (%(default)s)")
    add("--tiles", required=True, help="a folder of tile stores, or one store (.tar or .json)")
    add("--out", required=True, help="folder for the pictures")


def run_export(args: argparse.Namespace) -> None:
    """Write the pictures and their list."""
    table = export_folder(args.tiles, args.out)
    print(f"{args.out}: {len(table)} tiles of {table['slide'].nunique()} slides; {Path(args.out) / 'tiles.csv'}")


def main(args: argparse.Namespace) -> int | None:
    """Run the chosen sub-command and return its exit status."""
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
