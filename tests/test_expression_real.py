"""Expression on real files: GTEx v8 and v6, the Human Protein Atlas, spatial transcriptomics, the paper's lists."""

import csv
import gzip

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from datasets.expression import read_expression, write_expression
from datasets.gene_lists import read_gene_list
from datasets.genes import gene_key
from datasets.prepare_table import prepare_table


@pytest.fixture(scope="module")
def attributes(data_folder, tmp_path_factory):
    """Sample attributes of GTEx v8 in GTEx's own form, made of the joined metadata."""
    path = tmp_path_factory.mktemp("gtex") / "attributes.txt"
    with gzip.open(data_folder / "expression/gtex_v8_17382_sample_metadata_derived.csv.gz", "rt") as file:
        rows = [(row["SAMPID"], row["tissue_any"].split(" - ")[0], row["tissue_any"]) for row in csv.DictReader(file)]
    path.write_text("SAMPID\tSMTS\tSMTSD\n" + "".join("\t".join(row) + "\n" for row in rows))
    return path


def test_gtex_v8_gct_with_its_wrong_header(data_folder, attributes, tmp_path):
    path = data_folder / "expression/gtex_v8_acmg59_gene_reads.gct.gz"
    whole, report = prepare_table(path)
    assert whole.values.shape == (17382, 59) and whole.unit == "counts"
    lung, report = prepare_table(
        path,
        attributes=attributes,
        tissue=["Lung"],
        genes=data_folder / "gtex_ids/protein_coding_genes.csv",
        slides=data_folder / "gtex_ids/gtex_lung.csv",
    )
    assert report["samples"]["of_tissue"] == 577 and len(lung.genes) == 59
    assert report["slides"]["matched"] == len(lung) >= 555  # of the paper's 562
    same = whole.rows(list(lung.obs.index))
    assert np.array_equal(same.aligned(lung.genes)[0], lung.values)
    frame = pd.read_csv(path, sep="\t", skiprows=2, index_col="Name")
    assert np.array_equal(frame.loc[lung.genes, lung.obs.index].to_numpy().T, lung.values)
    write_expression(lung, tmp_path / "lung.csv")
    assert np.array_equal(read_expression(tmp_path / "lung.csv").values, lung.values)


def test_gtex_v6_of_40824_genes(data_folder):
    path = data_folder / "expression/gtex_v6_yarn_skin_counts.csv.gz"
    sheet = data_folder / "expression/gtex_v6_yarn_skin_sample_attributes.csv.gz"
    table, report = prepare_table(path, attributes=sheet)
    assert table.values.shape == (20, 40824) and table.unit == "counts"
    assert report["found"]["orientation"] == "genes in rows" and "cells_transformed_fibroblasts" in set(
        table.obs["tissue"]
    )
    frame = pd.read_csv(path, index_col=0)
    assert np.array_equal(table.values, frame.to_numpy(np.float32).T) and list(frame.index) == table.genes
    only, _ = prepare_table(path, attributes=sheet, tissue=["Cells - Transformed fibroblasts"], convert="cpm")
    assert 0 < len(only) < 20 and np.allclose(only.values.sum(1), 1e6, rtol=1e-4)


def test_samples_in_rows(data_folder):
    table, report = prepare_table(data_folder / "expression/gtex_v6_brain_1259x200_counts.csv.gz")
    assert table.values.shape == (1259, 200) and report["found"]["orientation"] == "genes in columns"


def test_hpa_has_missing_values_that_are_never_zero(data_folder):
    path = data_folder / "expression/hpa_rnaGtexTissue_nTPM.csv.gz"
    with pytest.raises(InputError, match=r"line 2566 \(ENSG00000101898\), column adipose tissue: the value is missing"):
        prepare_table(path)
    genes = data_folder / "gtex_ids/protein_coding_genes.csv"
    table, report = prepare_table(path, missing="drop", genes=genes)
    assert table.unit == "TPM" and len(table) == 37 and len(report["genes"]["lacking_values"]) == 326
    assert len(table.genes) == 19073 and len(report["genes"]["missing"]) == 125
    assert report["found"]["identifiers"] == "Ensembl ids without version"
    values, coverage = table.aligned(read_gene_list(genes).genes)
    assert coverage > 0.99 and np.isnan(values).any(0).sum() == 125


def test_symbols_of_spots_are_mapped(data_folder):
    mapping = data_folder / "expression/tissueenrich_human_gene_mapping.csv.gz"
    table, report = prepare_table(data_folder / "her2st/counts/C2.tsv.gz", mapping=mapping)
    assert table.values.shape[0] == 187 and len(table.genes) > 14000 and table.unit == "counts"
    assert "SAMD11" not in report["genes"]["unmapped"] and report["genes"]["unmapped"]


def test_the_papers_lists(data_folder):
    genes = read_gene_list(data_folder / "gtex_ids/protein_coding_genes.csv").genes
    assert len(genes) == len(set(map(gene_key, genes))) == 19198
