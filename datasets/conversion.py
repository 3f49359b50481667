"""A matrix brought to a linear scale, and from counts or FPKM to TPM or CPM where asked."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from datasets.gene_lengths import GeneLengths, counts_to_tpm
from datasets.gene_mapper import GeneMapper
from datasets.matrices import Matrix
from datasets.units import Unit, to_linear


def convert_values(
    path: str | Path, matrix: Matrix, found: Unit, to: str | None, lengths: GeneLengths | None, mapper: GeneMapper
) -> tuple[str, str | None, dict[str, Any] | None]:
    """Undo the log of `matrix` and convert it, in place; return (unit, what was done, what gene lengths were used).

    `to` is "tpm" (from FPKM, or from counts with `lengths`), "cpm" (from counts) or None. With lengths the matrix holds
    all genes of its file, since TPM are shares of all, and loses those without a length. InputError where the matrix is
    of a unit that is not converted so, or a profile has no positive sum.
    """
    matrix.values = to_linear(matrix.values, found.log)
    if to is None:
        return found.name, None, None
    if to == "tpm" and found.name == "counts" and lengths is not None:
        ids = [mapper.id_of(name) for name in matrix.genes]
        values, report = counts_to_tpm(path, matrix.values, matrix.genes, ids, lengths)
        known = ~np.isnan(values).any(0)
        matrix.values = values[:, known]
        matrix.genes = [name for name, has_length in zip(matrix.genes, known, strict=True) if has_length]
        what = f"counts / length, over its sum over the {report['genes_with_length']} genes with a length, x 10^6"
        return "TPM", what, report
    if (found.name, to) not in (("FPKM", "tpm"), ("counts", "cpm")) or lengths is not None:
        raise InputError(
            f"{path}: is in {found.name}; --convert tpm takes FPKM, or counts with --gene_lengths GTF, and --convert "
            "cpm takes counts; leave out what does not fit, or state the unit with --unit"
        )
    totals = matrix.stats.totals if found.log is None else matrix.stats.unlogged.get(found.log)
    if totals is None or not (totals > 0).all():
        raise InputError(f"{path}: a profile without a positive sum cannot be converted; remove it or --convert")
    matrix.values *= (1e6 / totals)[:, None].astype(np.float32)
    what = f"{found.name} / sum over the {matrix.stats.n_genes} genes of the file x 10^6"
    return to.upper(), what, None
