"""prepare_data.py expression: from any matrix to an expression table."""

import argparse

from common.config import DataSettings, add_fit_scaler
from common.errors import InputError
from common.files import write_json
from datasets.coverage import Expected, coverage_of, describe_coverage
from datasets.expression import refuse_other_unit, write_expression
from datasets.gene_lists import GeneList, read_gene_list
from datasets.prepare_table import prepare_table, summarise
from datasets.units import UNITS
from preparation.harmonising import (
    add_harmonise,
    check_harmonise,
    describe_harmonised,
    harmonise_table,
    report_distances,
)
from preparation.parts import Commands, add_command, add_genes, genes_of, table_path

MANUAL = """Turn a matrix of any common form into an expression table: samples x genes, linear units.

Reads --input: GTEx GCT, GEO and other text matrices (genes in rows or columns; comma, tab or semicolon; gzip), parquet,
h5ad. Says which orientation, gene identifiers, unit and duplicates it found, and by what evidence. Where the evidence
leaves a choice, it stops with the choices (exit status 2): --orientation, --id, --unit and --duplicates settle it.
Writes --out (.csv in the reference's form, or .h5ad) and beside it <name>.report.json: what was mapped, summed and left
out. Rows of one gene are summed, a sample twice is refused, a missing gene is left out and never filled with zeros.
Logged values are brought back to linear; counts stay counts unless --convert tpm (with --gene_lengths) or cpm.
--checkpoint takes the genes of a trained beta-VAE in its order, and reports those that the matrix lacks by name, with
what each weighs in the model: its share of the squared L2 norm of the encoder's first layer.
It also says how far each profile is from the training cloud, as a percentile of held-out donors' own distances.
--harmonise brings profiles of another platform to the scale of --reference, the training's table (its training donors):
quantile gives each profile the reference's distribution, reference gives each gene the reference's mean and spread (for
several profiles of the same mix of people). With --checkpoint <name>.harmonise.png shows them before and after.
Genes are found by Ensembl id whatever its version, or by symbol or alias through --mapping: a GTF, or a table such as
HGNC's complete set (symbol, alias_symbol, prev_symbol, entrez_id, ensembl_gene_id).
A column assigned_split of the table (train, val or test), where it is not empty, wins over the split by donor in every
stage that reads the table; `spots --test` fills it, and so may you.

    python prepare_data.py expression --input gene_tpm.gct.gz --attributes SampleAttributesDS.txt \\
        --phenotypes SubjectPhenotypesDS.txt --tissue Lung --genes protein_coding_genes.csv --slides slides/lung \\
        --out data/lung.csv
    python prepare_data.py expression --input GSE1_counts.tsv.gz --mapping hgnc_complete_set.txt --convert tpm \\
        --gene_lengths gencode.gtf.gz --checkpoint checkpoints/betavae_tissues --out data/geo.csv \\
        --harmonise reference --reference data/lung.csv
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
    add("--checkpoint", help="a beta-VAE, file or run folder: its genes, in its order, instead of --genes")
    add_fit_scaler(add)
    add(
        "--min_coverage", type=float, help="refuse fewer of the wanted genes than this share; default: the checkpoint's"
    )
    add_harmonise(add)
    add("--slides", help="folder or list of slides: keep the samples that have one, by donor and site")
    add("--keep_unmatched", action="store_true", help="with --slides: keep samples without slide too")
    add("--unit", nargs="+", choices=UNITS, help="unit of the input, or its log, or both: tpm log2p1 is log2(TPM + 1)")
    add("--orientation", choices=["genes_in_rows", "genes_in_columns"])
    add("--missing", choices=["refuse", "drop"], default="refuse", help="drop: leave out genes that lack a value")
    add("--convert", choices=["tpm", "cpm"], help="scale to sums of 10^6: tpm from FPKM or counts, cpm from counts")
    add("--gene_lengths", help="for --convert tpm of counts: a GTF (union of exons), or a table with a column Length")


def run(args: argparse.Namespace) -> None:
    """Write the table and its report; print what was found."""
    out = table_path(args.out)
    flags = genes_of(args)
    check_harmonise(args)
    if not 0 <= (args.min_coverage or 0) <= 1:
        raise InputError(f"--min_coverage {args.min_coverage:g}: a share from 0 to 1 was expected")
    vae = None
    if args.checkpoint:
        from sources.vae import Fit, open_vae, origin_of  # torch takes seconds to import

        seed = DataSettings.split_seed if args.split_seed is None else args.split_seed
        vae, digest = open_vae(args.checkpoint, fit=Fit(tuple(args.fit_scaler or ()), seed))
        if args.genes:
            raise InputError(f"--genes {args.genes}: --checkpoint names the genes; leave one of them out")
        flags["genes"] = GeneList(vae.genes)
        least = vae.min_gene_coverage if args.min_coverage is None else args.min_coverage
        expected = Expected(args.checkpoint, vae.genes, vae.gene_weights().numpy())
    elif args.genes:
        flags |= {"genes": read_gene_list(args.genes, args.biotype), "biotype": None}
        least, expected = args.min_coverage or 0.0, Expected(args.genes, flags["genes"].genes)
    elif args.min_coverage is not None:
        raise InputError("--min_coverage needs the genes that are wanted; name them with --checkpoint or --genes")
    table, report = prepare_table(
        args.input,
        attributes=args.attributes,
        phenotypes=args.phenotypes,
        tissue=args.tissue,
        slides=args.slides,
        keep_unmatched=args.keep_unmatched,
        unit=" ".join(args.unit or []) or None,
        orientation=args.orientation and args.orientation.removeprefix("genes_in_"),
        missing=args.missing,
        convert=args.convert,
        gene_lengths=args.gene_lengths,
        **flags,
    )
    lines = [summarise(report)]
    made = harmonise_table(args, table, vae) if args.harmonise else None
    if made is not None:
        table, report["harmonised"] = made.table, made.report
        report["unit_of_table"] = table.unit
        lines.append(describe_harmonised(made.report))
        if vae is None:
            lines.append("not compared with a training cloud, and not drawn: name a beta-VAE with --checkpoint")
    if flags["genes"]:
        report["coverage"] = coverage_of(expected, table, least, made.before if made is not None else None)
    if vae is not None:
        refuse_other_unit(args.input, table.unit, vae.unit)
        report["checkpoint"] = {"path": args.checkpoint, "digest": digest, "unit": vae.unit} | origin_of(vae)
        lines.append(describe_coverage(report["coverage"]))
        picture = out.with_name(f"{out.stem}.harmonise.png")
        lines += report_distances(report, vae, args.checkpoint, table, made, picture)
    write_expression(table, out)
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    print("\n".join(lines))
    print(f"{out}: {len(table)} samples x {len(table.genes)} genes; {out.with_name(f'{out.stem}.report.json')}")
