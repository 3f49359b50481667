"""Make the inputs of every other stage: a demo cohort, expression tables, tile stores, the classifier's tables.

    python prepare_data.py demo --out demo --seed 99
    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt --tissue Lung \\
        --genes protein_coding_genes.csv --slides slides/lung --out data/lung.csv
    python prepare_data.py tiles --slides slides/lung --out tiles/lung --mpp 0.5 --tile_size 256 --max_tiles 600

`python prepare_data.py COMMAND --help` says what each reads and writes.
"""

import argparse
import sys
from pathlib import Path

from common.errors import InputError, command_parser, run_command
from common.files import write_json
from datasets.expression import write_expression
from datasets.prepare_table import prepare_table, summarise
from datasets.units import UNITS


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one sub-command per kind of input."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    # demo
    _add_expression(commands)
    # tiles
    # toy
    # export
    return parser


EXPRESSION_MANUAL = """Turn a matrix of any common form into an expression table: samples x genes, linear units.

Reads --input: GTEx GCT, GEO and other text matrices (genes in rows or columns; comma, tab or semicolon; gzip), parquet,
h5ad. Says which orientation, gene identifiers and unit it found; --orientation, --id and --unit overrule.
Writes --out (.csv in the reference's form, or .h5ad) and beside it <name>.report.json: what was mapped, summed and left
out. Rows of one gene are summed, a sample twice is refused, a missing gene is left out and never filled with zeros.
Logged values are brought back to linear; counts stay counts unless --convert cpm.

    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt \\
        --phenotypes SubjectPhenotypesDS.txt --tissue Lung --genes protein_coding_genes.csv --slides slides/lung \\
        --out data/lung.csv
"""


def _add_expression(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "expression",
        help="make an expression table",
        description=EXPRESSION_MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, help="the matrix")
    add("--out", required=True, help="the table to write, .csv or .h5ad")
    add("--attributes", help="GTEx sample attributes: SAMPID, SMTSD (site), SMTS (organ)")
    add("--phenotypes", help="GTEx subject phenotypes: SUBJID, SEX, AGE")
    add("--tissue", nargs="+", default=[], help='keep samples of these sites or organs: Lung, "Brain - Cortex"')
    add("--genes", help="genes to keep: CSV with a column Gene (rna_ENSG....v), one id a line, or a GTF")
    add("--biotype", help="of the genes of a GTF: protein_coding")
    add("--mapping", help="symbols to Ensembl ids: a table with a column of each, or a GTF")
    add("--slides", help="folder or list of slides: keep the samples that have one, by donor and site")
    add("--keep_unmatched", action="store_true", help="with --slides: keep samples without slide too")
    add("--unit", choices=UNITS, help="unit of the input; log2p1 is log2(x + 1)")
    add("--orientation", choices=["genes_in_rows", "genes_in_columns"])
    add("--id", choices=["ensembl", "symbol"], help="how the input names genes")
    add("--duplicates", choices=["sum", "refuse"], help="default: sum, but refuse the very same Ensembl id twice")
    add("--missing", choices=["refuse", "drop"], default="refuse", help="drop: leave out genes that lack a value")
    add("--convert", choices=["tpm", "cpm"], help="scale to sums of 10^6: tpm from FPKM, cpm from counts")
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(run=run_expression)


def run_expression(args: argparse.Namespace) -> None:
    """Write the table and its report; print what was found."""
    out = Path(args.out)
    if out.suffix not in (".csv", ".h5ad"):
        raise InputError(f"{out}: tables are written as .csv or .h5ad; name the output accordingly")
    table, report = prepare_table(
        args.input,
        attributes=args.attributes,
        phenotypes=args.phenotypes,
        tissue=args.tissue,
        genes=args.genes,
        biotype=args.biotype,
        mapping=args.mapping,
        slides=args.slides,
        keep_unmatched=args.keep_unmatched,
        unit=args.unit,
        orientation=args.orientation and args.orientation.removeprefix("genes_in_"),
        identifiers=args.id,
        duplicates=args.duplicates,
        missing=args.missing,
        convert=args.convert,
    )
    write_expression(table, out)
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    print(summarise(report))
    print(f"{out}: {len(table)} samples x {len(table.genes)} genes; {out.with_name(f'{out.stem}.report.json')}")


def main(args: argparse.Namespace) -> int | None:
    """Run the chosen sub-command and return its exit status."""
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
