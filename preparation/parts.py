"""What the sub-commands share: how one is added, the flags of genes, the flags of workers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import InputError
from datasets.cluster import check_memory_limit
from datasets.gene_mapper import IDENTIFIERS

Commands = argparse._SubParsersAction


def add_command(
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


def add_genes(add: Callable[..., argparse.Action]) -> None:
    """Add the flags that choose and name genes, of `expression` and `spots`."""
    add("--genes", help="genes to keep: CSV with a column Gene (rna_ENSG....v), one id a line, or a GTF")
    add("--biotype", help="of the genes of a GTF: protein_coding")
    add("--mapping", help="names to Ensembl ids: a GTF, or a table with a column of each (HGNC's: aliases too)")
    add("--id", choices=IDENTIFIERS, help="how the input names genes; mixed: each name by what it looks like")
    add(
        "--duplicates",
        choices=["sum", "first", "refuse"],
        help="several rows of a gene; default: sum, but refuse the very same Ensembl id twice, and copies",
    )


def genes_of(args: argparse.Namespace) -> dict[str, str | None]:
    """Return those flags by name."""
    flags = {name: getattr(args, name) for name in ("genes", "biotype", "mapping", "duplicates")}
    return flags | {"identifiers": args.id}


def table_path(out: str) -> Path:
    """Return the path of --out. InputError where it is of a form that is not written, before anything is read."""
    if Path(out).suffix not in (".csv", ".h5ad"):
        raise InputError(f"{out}: tables are written as .csv or .h5ad; name the output accordingly")
    return Path(out)


def add_workers(add: Callable[..., argparse.Action]) -> None:
    """Add the flags that say who does the work."""
    add("--workers", type=int, help="processes on this machine, a slide each; 0: in this one (default: 1)")
    add("--memory_limit", help="of each, such as 4GB; beyond it a worker is replaced (default: an equal share)")
    add("--scheduler", help="address or file of a dask scheduler, whose workers do it instead (README: Many slides)")


def workers_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return those flags as `open_workers` takes them. InputError for ones that cannot be, or not together."""
    if args.workers is not None and args.workers < 0:
        raise InputError(f"--workers {args.workers}: a number of processes was expected, 0: do it in this one")
    for name in ("workers", "memory_limit"):
        if args.scheduler and getattr(args, name) is not None:
            raise InputError(f"--{name}: the workers of --scheduler are as they were started; leave one of the two out")
    if args.memory_limit is not None:
        if args.workers == 0:
            raise InputError("--memory_limit: with --workers 0 there is no worker to limit; leave one of the two out")
        check_memory_limit(args.memory_limit)
    workers = 1 if args.workers is None else args.workers
    return {"workers": workers, "memory_limit": args.memory_limit or "auto", "scheduler": args.scheduler}
