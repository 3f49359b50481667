"""prepare_data.py import: the published code's tiles as tile stores."""

import argparse

from common.errors import EXIT_DONE, EXIT_SOME_FAILED, InputError, warn
from common.files import make_folder
from datasets.published_store import ImportSettings, find_published, import_published
from datasets.slides import check_mpp
from datasets.tiles import SUFFIX
from preparation.parts import Commands, add_command

MANUAL = """Turn the published code's tiles into tile stores, without executing the pickles in them.

Reads --lmdb: a <slide>.db that its patch_gen_grid.py wrote, or a folder with such files in it. Writes <out>/<slide>.tar
and .json. A file says neither where its tiles were on the slide nor how large a pixel is: coordinates and tissue are
recorded as unknown, --mpp is yours to know (0.5 where slides of 20x, or of 40x with their AppMag, were cut without
--dezoom_factor). A file that is damaged, or holds anything but plain tiles, is refused by name; the others are
imported, with exit status 3. The same command again keeps what is there.

    python prepare_data.py import --lmdb patches/lung --mpp 0.5 --out tiles/lung
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "import", "take over the published code's tiles (LMDB)", MANUAL, run)
    add("--lmdb", required=True, help="a .db file, or a folder with such files in it")
    add("--mpp", type=float, required=True, help="micrometres per pixel of the tiles")
    add("--out", required=True, help="folder for the tile stores")
    add("--format", choices=list(SUFFIX), default="jpeg", help="of the tiles in the store; png: no loss (%(default)s)")
    add("--quality", type=int, default=95, help="of JPEG tiles, always 4:4:4 (%(default)s)")
    add("--restart", action="store_true", help="replace stores that are there")


def run(args: argparse.Namespace) -> int:
    """Import file by file; name those that failed; return the exit status."""
    from tqdm import tqdm

    settings = ImportSettings(check_mpp(args.mpp, "--mpp"), args.format, args.quality)
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: expected 1 to 100")
    files = find_published(args.lmdb)
    make_folder(args.out)
    tiles, kept, failed = 0, 0, []
    for path in tqdm(files, desc="import", unit="slide", disable=None):
        try:
            count, there = import_published(path, args.out, settings, args.restart)
        except InputError as error:
            failed.append(error)
            warn(str(error))
            continue
        tiles, kept = tiles + count, kept + there
    if len(failed) == len(files):
        raise InputError(f"{args.lmdb}: no tiles from any of {len(files)} files; the first: {failed[0]}")
    done = len(files) - len(failed)
    print(
        f"{args.out}: {tiles} tiles of {done} slides at {args.mpp:g} um per pixel ({kept} kept); {len(failed)} failed"
    )
    return EXIT_SOME_FAILED if failed else EXIT_DONE
