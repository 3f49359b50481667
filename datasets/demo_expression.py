"""The demo's expression in the archives' formats: GTEx GCT and its two annotation files, GSE120795-like tables."""

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd

from common.files import atomic_path, write_text
from common.run import seed_for
from datasets.demo_cohort import SMTSD, TISSUES, Cohort, Sample
from datasets.demo_genes import Genes, make_genes
from datasets.demo_paint import FACTORS

DEPTH = 1.2e7  # fragments per sample on these genes
GEO_PROFILES = 12  # per tissue
GEO_GENES = 0.97  # share of the coding genes that the other platform measures


def write_expression_files(folder: Path, geo_folder: Path, cohort: Cohort, seed: int) -> None:
    """Write gene_tpm.gct.gz, both annotation files, the list of coding genes, and two tables of another platform."""
    genes = make_genes(np.random.default_rng(seed_for(seed, "demo genes")))
    rng = np.random.default_rng(seed_for(seed, "demo expression"))
    ischaemia = rng.normal(0, 1, len(cohort.samples))
    tpm = _measure(rng, genes, _expected(genes, cohort.samples, ischaemia))
    _write_gct(folder / "gene_tpm.gct.gz", genes, [s.name for s in cohort.samples], tpm)
    _write_annotations(folder, cohort, ischaemia, rng)
    coding = [g for g, c in zip(genes.ids, genes.coding, strict=True) if c]
    write_text(folder / "protein_coding_genes.csv", "Gene\n" + "".join(f"rna_{g}\n" for g in coding))
    _write_other_platform(geo_folder, genes, seed)


def _expected(genes: Genes, samples: list[Sample], ischaemia: np.ndarray) -> np.ndarray:
    """Return the expected expression (genes, samples), up to a factor per sample."""
    log = np.repeat(genes.base[:, None], len(samples), axis=1)
    log += genes.factors @ np.array([[s.donor.factors[f] for s in samples] for f in FACTORS])
    log += np.stack([genes.tissue[s.tissue] + genes.sex[:, s.donor.sex - 1] for s in samples], axis=1)
    log += genes.batch[:, [s.batch for s in samples]] + np.outer(genes.ischaemia, ischaemia)
    return np.exp(log)


def _measure(rng: np.random.Generator, genes: Genes, expected: np.ndarray) -> np.ndarray:
    """Return TPM (genes, samples; columns sum to 1e6) of counts drawn from a negative binomial."""
    share = expected * genes.length_kb[:, None]
    depth = DEPTH * np.exp(rng.normal(0, 0.25, expected.shape[1]))
    mean = share / share.sum(0) * depth
    shape = 1 / genes.dispersion[:, None]
    rate = rng.poisson(rng.gamma(shape, mean / shape)) / genes.length_kb[:, None]
    return rate / rate.sum(0) * 1e6


def _write_gct(path: Path, genes: Genes, samples: list[str], tpm: np.ndarray) -> None:
    """Write a GCT 1.2, gzipped without a time stamp."""
    text = io.StringIO()
    text.write(f"#1.2\n{len(genes.ids)}\t{len(samples)}\n" + "\t".join(["Name", "Description", *samples]) + "\n")
    for gene, symbol, row in zip(genes.ids, genes.symbols, tpm, strict=True):
        text.write(f"{gene}\t{symbol}\t" + "\t".join(f"{v:.4g}" for v in row) + "\n")
    with atomic_path(path) as partial:
        partial.write_bytes(gzip.compress(text.getvalue().encode(), compresslevel=4, mtime=0))


def _write_annotations(folder: Path, cohort: Cohort, ischaemia: np.ndarray, rng: np.random.Generator) -> None:
    samples = cohort.samples
    attributes = pd.DataFrame(
        {
            "SAMPID": [s.name for s in samples],
            "SMATSSCR": rng.integers(0, 3, len(samples)),
            "SMRIN": (7.0 - 0.5 * ischaemia + rng.normal(0, 0.4, len(samples))).clip(5, 9.5).round(1),
            "SMTS": [SMTSD[s.tissue].split(" - ")[0] for s in samples],
            "SMTSD": [SMTSD[s.tissue] for s in samples],
            "SMTSISCH": np.round(500 + 220 * ischaemia).clip(30, 1500).astype(int),
            "SMGEBTCH": [f"LCSET-{4800 + 37 * s.batch}" for s in samples],
            "SMAFRZE": "RNASEQ",
        }
    )
    slides = pd.DataFrame(  # the archive lists the slides' blocks too, which have no RNA
        {
            "SAMPID": [s.name.removesuffix(".svs") for s in cohort.slides],
            "SMTS": [SMTSD[s.tissue].split(" - ")[0] for s in cohort.slides],
            "SMTSD": [SMTSD[s.tissue] for s in cohort.slides],
            "SMAFRZE": "EXCLUDE",
        }
    )
    table = pd.concat([attributes, slides]).sort_values("SAMPID")
    table = table.astype({"SMATSSCR": "Int64", "SMTSISCH": "Int64"})
    write_text(folder / "SampleAttributesDS.txt", table.to_csv(sep="\t", index=False))
    phenotypes = [(d.name, d.sex, d.age, d.hardy) for d in sorted(cohort.donors, key=lambda d: d.name)]
    table = pd.DataFrame(phenotypes, columns=["SUBJID", "SEX", "AGE", "DTHHRDY"])
    write_text(folder / "SubjectPhenotypesDS.txt", table.to_csv(sep="\t", index=False))


def _write_other_platform(folder: Path, genes: Genes, seed: int) -> None:
    """Write a table per tissue: other people, fewer genes in another order, each gene shifted and stretched in log."""
    rng = np.random.default_rng(seed_for(seed, "demo platform"))
    shift, stretch = rng.normal(0, 0.4, len(genes.ids)), rng.normal(0.92, 0.05, len(genes.ids))
    columns = rng.permutation(np.flatnonzero(genes.coding))
    columns = columns[: round(GEO_GENES * len(columns))]
    for tissue in TISSUES:
        log = genes.base + genes.tissue[tissue] + rng.standard_normal((GEO_PROFILES, len(FACTORS))) @ genes.factors.T
        log += genes.sex[:, rng.integers(0, 2, GEO_PROFILES)].T
        tpm = _measure(rng, genes, np.exp(shift + stretch * log).T).T
        run = rng.integers(10**4, 10**5)
        names = pd.Index([f"SRR{run}{i:02d}_{tissue}" for i in range(GEO_PROFILES)], name="sample")
        table = pd.DataFrame(tpm[:, columns], index=names, columns=[f"rna_{genes.ids[c]}" for c in columns])
        write_text(folder / f"GSE120795_{tissue}_proteincoding.csv", table.to_csv(float_format="%.6g"))
