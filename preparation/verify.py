"""prepare_data.py verify: are the tile stores whole?"""

import argparse
import contextlib
from pathlib import Path

from common.errors import EXIT_DONE, EXIT_SOME_FAILED, InputError, warn
from datasets.cluster import WorkersDied, open_workers
from datasets.tiles import TileStore, store_stems
from preparation.parts import Commands, add_command, add_workers, workers_of
from preparation.progress import Progress

MANUAL = """Read every tile of every store: is it what was written, and a picture?

Reads --tiles: folders of tile stores. Checks each store's seal, the length and SHA-256 of its tar, and of every tile
the CRC32 and that it decodes to its size. Names each damaged store, with what is wrong, and writes nothing: delete
what is named and run prepare_data.py tiles again, which cuts only what is missing.
Exit status 0: all whole; 3: some are damaged; 2: all are, or there is none.

    python prepare_data.py verify --tiles tiles/lung tiles/brain --workers 2
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "verify", "check that tile stores are whole", MANUAL, run)
    add("--tiles", nargs="+", required=True, help="folders of tile stores")
    add_workers(add)


def run(args: argparse.Namespace) -> int:
    """Check the stores, name the damaged ones; return the exit status."""
    workers = workers_of(args)
    stems = [stem.absolute() for folder in args.tiles for stem in store_stems(folder)]
    damaged, tiles = [], 0
    workers["workers"] = min(workers["workers"], len(stems))
    with (
        open_workers(**workers) as execute,
        Progress("verify", len(stems)) as progress,
        contextlib.closing(execute(check_store, stems)) as checked,
    ):
        for stem, result in checked:
            whole = isinstance(result, int)
            if not whole:
                damaged.append(stem)
                progress.clear()
                warn(f"{stem}: its workers died" if isinstance(result, WorkersDied) else result)
            tiles += result if whole else 0
            progress.add(result if whole else 0)
    if len(damaged) == len(stems):
        raise InputError(f"{', '.join(args.tiles)}: none of {len(stems)} tile stores is whole; cut them again")
    print(f"{len(stems) - len(damaged)} tile stores with {tiles:,} tiles are whole; {len(damaged)} damaged")
    return EXIT_SOME_FAILED if damaged else EXIT_DONE


def check_store(stem: Path) -> int | str:
    """Return how many tiles the store has where it is whole, else what is wrong with it."""
    try:
        store = TileStore(stem.with_name(f"{stem.name}.json"))
        store.verify()
        return len(store)
    except (InputError, OSError) as error:
        return str(error)
