"""How much of what a checkpoint expects a table has: the missing genes by name, and what they weigh in the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import InputError, shorten
from datasets.expression import ExpressionTable
from datasets.genes import gene_key

WEIGHT_IS = "a gene's share of the squared L2 norm of the encoder's first layer"


@dataclass
class Expected:
    """The genes that a checkpoint, or a list, expects, in its order."""

    source: str
    genes: Sequence[str]
    weights: np.ndarray | None = None  # (genes,) shares of the model, sum 1; None: no model


def coverage_of(
    expected: Expected, table: ExpressionTable, min_coverage: float, measured: ExpressionTable | None = None
) -> dict[str, Any]:
    """Return the report of the genes of `expected` that `table` has, lacks, and has as 0 in every sample.

    Missing genes come by name and symbol, the heaviest first. InputError where the share of genes present is below
    `min_coverage`; a gene that is 0 throughout counts as present, and is named: a platform may not have measured it.
    `measured` is the table that `table` was harmonised from, which moves the zeros; None: it was not.
    """
    present, measured = set(map(gene_key, table.genes)), table if measured is None else measured
    zero = ~measured.values.any(0) if len(measured) else np.zeros(len(measured.genes), bool)
    zeros = present & {gene_key(gene) for gene, is_zero in zip(measured.genes, zero, strict=True) if is_zero}
    missing = [i for i, gene in enumerate(expected.genes) if gene_key(gene) not in present]
    silent = [i for i, gene in enumerate(expected.genes) if gene_key(gene) in zeros]
    n = len(expected.genes)
    report = {
        "of": expected.source,
        "expected": n,
        "present": n - len(missing),
        "coverage": (n - len(missing)) / n,
        "min_coverage": min_coverage,
        "missing": _named(expected, table, missing),
        "zero_in_all_samples": _named(expected, table, silent),
    }
    if expected.weights is not None:
        report |= {
            "weight_is": WEIGHT_IS,
            "weight_present": float(1 - expected.weights[missing].sum()),
            "weight_zero_in_all_samples": float(expected.weights[silent].sum()),
        }
    if report["coverage"] < min_coverage:
        raise InputError(
            f"{table.source}: {describe_coverage(report)}; at least {min_coverage:.0%} of the genes were expected; "
            "use a matrix of more genes, a --mapping that knows its names, or lower --min_coverage"
        )
    return report


def describe_coverage(report: dict[str, Any]) -> str:
    """Return a report of `coverage_of` in words, on one line."""
    weighed = f", {report['weight_present']:.1%} of the encoder's weight" if "weight_is" in report else ""
    text = (
        f"{report['present']} of the {report['expected']} genes of {report['of']} ({report['coverage']:.1%}{weighed})"
    )
    for what, key in (("missing", "missing"), ("0 in every sample", "zero_in_all_samples")):
        if genes := report[key]:
            text += f"; {what}: {shorten(map(_name, genes), 4)}"
    return text


def _named(expected: Expected, table: ExpressionTable, which: list[int]) -> list[dict[str, Any]]:
    if expected.weights is not None:
        which = sorted(which, key=lambda i: -expected.weights[i])
    return [
        {"gene": expected.genes[i], "symbol": table.symbols.get(gene_key(expected.genes[i]), "")}
        | ({"weight": float(expected.weights[i])} if expected.weights is not None else {})
        for i in which
    ]


def _name(gene: dict[str, Any]) -> str:
    """Return "SFTPC (ENSG00000168484.12, 0.031 %)"."""
    weight = f"{100 * gene['weight']:.2g} %" if "weight" in gene else ""
    facts = [fact for fact in (gene["gene"] if gene["symbol"] else "", weight) if fact]
    return (gene["symbol"] or gene["gene"]) + f" ({', '.join(facts)})" * bool(facts)
