"""What the sub-commands share: how one is added, and the flags that choose and name genes."""

import argparse
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError

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
    add(
        "--duplicates",
        choices=["sum", "first", "refuse"],
        help="several rows of a gene; default: sum, but refuse the very same Ensembl id twice, and copies",
    )


def genes_of(args: argparse.Namespace) -> dict[str, str | None]:
    """Return those flags by name."""
    return {name: getattr(args, name) for name in ("genes", "biotype", "mapping", "duplicates")}


def table_path(out: str) -> Path:
    """Return the path of --out. InputError where it is of a form that is not written, before anything is read."""
    if Path(out).suffix not in (".csv", ".h5ad"):
        raise InputError(f"{out}: tables are written as .csv or .h5ad; name the output accordingly")
    return Path(out)
