"""prepare_data.py tiles: from slides to tile stores."""

import argparse
import contextlib
from pathlib import Path

from common.errors import EXIT_DONE, EXIT_SOME_FAILED, InputError, warn
from common.files import make_folder
from datasets.given import given_of
from datasets.job import CRITERIA, Job, Outcome, TileSettings
from datasets.jobs import cut_slides
from datasets.keys import slide_key
from datasets.slides import check_mpp, find_slides, read_mpp_table
from datasets.tiles import SUFFIX
from preparation.parts import Commands, add_command, add_workers, workers_of
from preparation.progress import Progress
from preparation.tile_report import write_reports

MANUAL = """Cut slides into tiles of one physical size and keep them in tile stores.

Reads --slides: a folder (with its sub-folders) or one slide, in any form that OpenSlide opens. Finds the tissue at low
resolution, lays a grid in micrometres over it, leaves out blank, blurred, damaged and pen-marked tiles, and takes up to
--max_tiles spread over the tissue. Tissue share, sharpness and pen share are kept with each tile: cut generously and
choose later, with --min_tissue, --min_sharpness and --max_pen of training, generation, fid.py and the evaluation.
--criteria published keeps exactly the tiles that the published extractor keeps, in its order, and checks nothing else.
Micrometres per pixel come from the slide's line in --mpp_table, else from its file, else from --slide_mpp; a slide
without any is refused (its nominal magnification is never taken for it).
--coordinates takes the squares that CLAM or TRIDENT chose (their size must be that of --mpp and --tile_size; each is
read as it is, --min_tissue does not apply without --masks), --masks the tissue drawn in QuPath, in level-0 pixels.
Writes <out>/<slide>.tar and .json (one tile store per slide), <out>/report.csv (one row per slide: tiles, mpp, what was
left out and why, stain), <out>/report.html (the same to look at, problems first) and <out>/previews/<slide>.png
(tissue in green, tiles in blue).
A slide that fails costs itself; exit status 3 says that some did, 2 that all did. The same command again keeps what is
finished; two at a time on one folder share the slides. A worker that dies, or that --slide_timeout ends, is replaced;
its slide is tried three times, one that overran once. The tiles are the same, byte for byte, whoever cuts them.

    python prepare_data.py tiles --slides slides/lung --out tiles/lung --mpp 0.5 --tile_size 256 --max_tiles 600 \\
        --workers 2
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    default = TileSettings()
    add = add_command(commands, "tiles", "cut slides into tile stores", MANUAL, run)
    add("--slides", required=True, help="folder of slides, or one slide")
    add("--out", required=True, help="folder for the tile stores")
    add("--mpp", type=float, default=default.mpp, help="micrometres per pixel of the tiles (%(default)s)")
    add("--tile_size", type=int, default=default.tile_size, help="their side in pixels (%(default)s)")
    add("--max_tiles", type=int, default=default.max_tiles, help="at most so many of a slide; 0: all (%(default)s)")
    add("--criteria", choices=list(CRITERIA), default=default.criteria, help="see above (%(default)s)")
    add("--min_tissue", type=float, help="least tissue share of a tile (0.5; published: 0.2)")
    add("--min_sharpness", type=float, help="0 to 1; 0 keeps blurred tiles (0.15; published: 0)")
    add("--max_pen", type=float, help="largest share of a pen's colour; 1: any (0.05; published: 1)")
    add("--format", choices=list(SUFFIX), default=default.fmt, help="of the tiles in the store (%(default)s)")
    add("--quality", type=int, default=default.quality, help="of JPEG tiles, always 4:4:4 (%(default)s)")
    add("--slide_mpp", type=float, help="micrometres per pixel at level 0 of slides that do not state theirs")
    add("--mpp_table", help="the same for named slides: a CSV with columns slide, mpp; wins over the file")
    add("--coordinates", help="folder of CLAM's or TRIDENT's coordinates (<slide>.h5): these squares, not our grid")
    add("--masks", help="folder of GeoJSON outlines (<slide>.geojson; QuPath, TRIDENT): this tissue, not our mask")
    add_workers(add)
    add("--slide_timeout", type=float, default=0, help="give a slide up after so many seconds; 0: never (%(default)s)")
    add("--restart", action="store_true", help="cut finished slides again, with whatever settings")


def run(args: argparse.Namespace) -> int:
    """Cut the slides, write the report, name the slides that failed; return the exit status."""
    settings = TileSettings(
        mpp=args.mpp,
        tile_size=args.tile_size,
        max_tiles=args.max_tiles,
        min_tissue=args.min_tissue,
        min_sharpness=args.min_sharpness,
        fmt=args.format,
        quality=args.quality,
        criteria=args.criteria,
        max_pen=args.max_pen,
    )
    settings.check()
    workers = workers_of(args)
    if not args.slide_timeout >= 0:
        raise InputError(f"--slide_timeout {args.slide_timeout:g}: seconds were expected, 0: never give up")
    if args.slide_timeout and workers["workers"] == 0:
        raise InputError("--slide_timeout: ends the process that cuts the slide; it needs --workers 1 or more")
    if args.slide_mpp is not None:
        check_mpp(args.slide_mpp, "--slide_mpp")
    if args.criteria == "published" and (args.coordinates or args.masks):
        raise InputError(
            "--criteria published has its own grid and mask; leave --coordinates and --masks out, or --criteria"
        )
    table = read_mpp_table(args.mpp_table) if args.mpp_table else {}
    slides, out, given = find_slides(args.slides), Path(args.out), given_of(args.coordinates, args.masks)
    jobs = [Job(path, out, settings, table.get(slide_key(path.name)), args.slide_mpp, given) for path in slides]
    make_folder(out)
    outcomes: list[Outcome] = []
    cutting = cut_slides(jobs, timeout=args.slide_timeout, restart=args.restart, **workers)
    try:
        with Progress("tiles", len(jobs)) as progress, contextlib.closing(cutting):
            for outcome in cutting:
                outcomes.append(outcome)
                if outcome.status == "failed":
                    progress.clear()
                    warn(outcome.reason)
                progress.add(outcome.tiles, outcome.status == "kept")
    finally:
        if outcomes:
            write_reports(out, outcomes, settings, given)
    failed = [o for o in outcomes if o.status == "failed"]
    if len(failed) == len(outcomes):
        raise InputError(f"{args.slides}: no tiles from any of {len(failed)} slides; the first: {failed[0].reason}")
    print(
        f"{out}: {sum(o.tiles for o in outcomes)} tiles of {len(outcomes) - len(failed)} slides; "
        f"{len(failed)} failed; {out / 'report.csv'}, {out / 'report.html'}"
    )
    return EXIT_SOME_FAILED if failed else EXIT_DONE
