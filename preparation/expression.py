"""prepare_data.py expression: from any matrix to an expression table."""

import argparse

from common.files import write_json
from datasets.expression import write_expression
from datasets.prepare_table import prepare_table, summarise
from datasets.units import UNITS
from preparation.parts import Commands, add_command, add_genes, genes_of, table_path

MANUAL = """Turn a matrix of any common form into an expression table: samples x genes, linear units.

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


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "expression", "make an expression table", MANUAL, run)
    add("--input", required=True, help="the matrix")
    add("--out", required=True, help="the table to write, .csv or .h5ad")
    add("--attributes", help="GTEx sample attributes: SAMPID, SMTSD (site), SMTS (organ)")
    add("--phenotypes", help="GTEx subject phenotypes: SUBJID, SEX, AGE")
    add("--tissue", nargs="+", default=[], help='keep samples of these sites or organs: Lung, "Brain - Cortex"')
    add_genes(add)
    add("--slides", help="folder or list of slides: keep the samples that have one, by donor and site")
    add("--keep_unmatched", action="store_true", help="with --slides: keep samples without slide too")
    add("--unit", choices=UNITS, help="unit of the input; log2p1 is log2(x + 1)")
    add("--orientation", choices=["genes_in_rows", "genes_in_columns"])
    add("--id", choices=["ensembl", "symbol"], help="how the input names genes")
    add("--missing", choices=["refuse", "drop"], default="refuse", help="drop: leave out genes that lack a value")
    add("--convert", choices=["tpm", "cpm"], help="scale to sums of 10^6: tpm from FPKM, cpm from counts")


def run(args: argparse.Namespace) -> None:
    """Write the table and its report; print what was found."""
    out = table_path(args.out)
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
        **genes_of(args),
    )
    write_expression(table, out)
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    print(summarise(report))
    print(f"{out}: {len(table)} samples x {len(table.genes)} genes; {out.with_name(f'{out.stem}.report.json')}")
