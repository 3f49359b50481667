"""Lengths of genes and counts to TPM: the union of exons by hand, the formula, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from test_expression_prepare import GENES, SYMBOLS, command, table_of, write

from common.errors import InputError
from datasets.expression import read_expression
from datasets.gene_lengths import read_gene_lengths
from datasets.prepare_table import prepare_table

EXONS = [  # gene, first and last base of each exon, bases in their union
    ([(1, 100), (51, 150), (301, 400)], 250),  # overlapping, and apart
    ([(1, 1000)], 1000),
    ([(1, 50), (10, 20), (51, 60)], 60),  # within, and adjoining
    ([(5, 5)], 1),
    ([(100, 200), (1, 150)], 200),  # not in order
    ([(1, 2000)], 2000),
]
LENGTHS = np.array([length for _, length in EXONS])
COUNTS = np.random.default_rng(3).integers(20, 9000, (4, 6)).astype(np.float64)  # (samples, genes)
FRAME = pd.DataFrame(COUNTS.T, index=GENES, columns=list("abcd"))
RATE = COUNTS / LENGTHS
TPM = RATE / RATE.sum(1, keepdims=True) * 1e6


def exons(genes=GENES, chromosome="chr1"):
    line = '{}\tHAVANA\t{}\t{}\t{}\t.\t+\t.\tgene_id "{}"; gene_type "protein_coding"; gene_name "{}";\n'
    rows = []
    for gene, symbol, (spans, _) in zip(genes, SYMBOLS, EXONS, strict=False):
        rows.append(line.format(chromosome, "gene", 1, 2000, gene, symbol))
        rows += [line.format(chromosome, "exon", *span, gene, symbol) for span in spans]
    return "##description\n" + "".join(rows)


def test_the_length_of_a_gene_is_the_union_of_its_exons(tmp_path):
    lengths = read_gene_lengths(write(tmp_path / "g.gtf.gz", exons() + exons(GENES[:1], "chrY")))  # on X and Y: once
    assert [lengths.of[gene.split(".")[0]] for gene in GENES] == list(LENGTHS)
    assert lengths.of["SFTPC"] == 250 and lengths.rule == "bases in the union of the gene's exons"


def test_a_symbol_on_x_and_y_means_the_gene_on_x(tmp_path):
    stem = GENES[1].split(".")[0]
    twin = exons([GENES[0], f"{stem}.4_PAR_Y"], "chrY").replace(SYMBOLS[0], "OTHER")
    lengths = read_gene_lengths(write(tmp_path / "g.gtf", exons() + twin))
    assert lengths.of[SYMBOLS[1]] == lengths.of[stem] == 1000 and f"{stem}_PAR_Y" in lengths.of
    shared = exons([GENES[0], "ENSG00000099999.1"]).replace(SYMBOLS[0], "OTHER")  # two genes of one name: neither's
    assert SYMBOLS[1] not in read_gene_lengths(write(tmp_path / "h.gtf", exons() + shared)).of


def test_a_table_with_a_length_column_as_featurecounts_writes_it(tmp_path):
    head = "# Program:featureCounts\nGeneid\tChr\tStart\tEnd\tStrand\tLength\ta.bam\n"
    rows = "".join(f"{g}\tchr1;chr1\t1;9\t5;12\t+;+\t{n}\t7\n" for g, n in zip(GENES, LENGTHS, strict=True))
    lengths = read_gene_lengths(write(tmp_path / "fc.tsv", head + rows))
    assert list(lengths.of.values()) == list(LENGTHS) and lengths.rule == "column Length of the table"
    for text, message in (
        ("gene,width\nENSG00000000001,5\n", "no column Length beside the genes' names"),
        ("gene,length\nENSG00000000001,x\n", "gene ENSG00000000001, column length: 'x' is not a number"),
        ("gene,length\nENSG00000000001,0\n", "gene ENSG00000000001, column length: the length is 0"),
        ("gene,length\nENSG00000000001,5\nENSG00000000001.3,6\n", "stands twice with two lengths"),
        (exons().replace("\texon\t", "\tCDS\t"), "no exon; a GTF with exons was expected"),
    ):
        with pytest.raises(InputError, match=message):
            read_gene_lengths(write(tmp_path / "bad.txt", text))


@pytest.mark.parametrize("turned", [False, True])
def test_counts_become_tpm(tmp_path, turned, capsys):
    gtf = write(tmp_path / "g.gtf", exons())
    path = write(tmp_path / "m_counts.csv", (FRAME.T if turned else FRAME).to_csv(float_format="%.0f"))
    flags = ["--input", path, "--convert", "tpm", "--gene_lengths", gtf]
    assert command(*flags, "--out", tmp_path / "all.h5ad") == 0
    table = read_expression(tmp_path / "all.h5ad")
    assert table.unit == "TPM" and np.allclose(table.values, TPM, rtol=1e-5) and np.allclose(table.values.sum(1), 1e6)
    report = json.loads((tmp_path / "all.report.json").read_text())
    assert report["gene_lengths"]["length_is"] == "bases in the union of the gene's exons"
    assert report["conversion"] == "counts / length, over its sum over the 6 genes with a length, x 10^6"
    assert "converted to TPM: counts / length" in capsys.readouterr().out
    genes = write(tmp_path / "genes.csv", f"Gene\nrna_{GENES[4]}\nrna_{GENES[1]}\n")  # TPM are shares of all genes
    assert command(*flags, "--genes", genes, "--out", tmp_path / "two.csv") == 0
    assert np.allclose(read_expression(tmp_path / "two.csv").values, TPM[:, [4, 1]], rtol=1e-5)


def test_counts_by_symbol_and_rows_that_count_reads_of_no_gene(tmp_path):
    gtf = write(tmp_path / "g.gtf", exons())
    tallies = pd.DataFrame(10**6, index=["__no_feature", "N_unmapped"], columns=list("abcd"))
    frame = pd.concat([FRAME.set_axis(SYMBOLS), tallies])
    path = write(tmp_path / "m_counts.csv", frame.to_csv(float_format="%.0f"))
    table, report = table_of(path, mapping=gtf, convert="tpm", gene_lengths=gtf)
    assert table.genes == GENES and np.allclose(table.values, TPM, rtol=1e-5)
    assert report["genes"]["rows_of_no_gene"] == ["__no_feature", "N_unmapped"] and report["genes"]["unmapped"] == []
    cpm, _ = table_of(path, mapping=gtf, convert="cpm")
    assert np.allclose(cpm.values, COUNTS / COUNTS.sum(1, keepdims=True) * 1e6, rtol=1e-5)


def test_rows_that_count_reads_of_no_gene_are_not_in_the_sums_of_logged_counts(tmp_path):
    frame = np.log2(pd.concat([FRAME, pd.DataFrame(10**6, index=["__no_feature"], columns=list("abcd"))]) + 1)
    path = write(tmp_path / "m_counts.csv", frame.to_csv())
    table, _ = table_of(path, convert="cpm", unit="counts log2p1", identifiers="ensembl")
    assert np.allclose(table.values, COUNTS / COUNTS.sum(1, keepdims=True) * 1e6, rtol=1e-4)


def test_copies_that_are_left_out_do_not_count_in_the_sums(tmp_path):
    gtf = write(tmp_path / "g.gtf", exons())
    frame = pd.concat([FRAME, FRAME.iloc[[0, 5]]])
    path = write(tmp_path / "m_counts.csv", frame.to_csv(float_format="%.0f"))
    logged = write(tmp_path / "logged_counts.csv", np.log2(frame + 1).to_csv())
    genes = write(tmp_path / "genes.csv", f"Gene\nrna_{GENES[4]}\nrna_{GENES[0]}\n")
    cpm = COUNTS / COUNTS.sum(1, keepdims=True) * 1e6
    first = {GENES[j].split(".")[0]: [GENES[j]] * 2 for j in (0, 5)}
    for wanted, columns in ((None, range(6)), (genes, [4, 0])):  # a copy of a gene that is not wanted does not either
        flags = {"duplicates": "first", "genes": wanted}
        for matrix, unit in ((path, None), (logged, "counts log2p1")):
            table, report = table_of(matrix, convert="cpm", unit=unit, **flags)
            assert np.allclose(table.values, cpm[:, columns], rtol=1e-4)
            assert report["genes"]["first_of_several"] == {
                key: rows for key, rows in first.items() if wanted is None or rows[0] == GENES[0]
            }
            assert report["genes"]["summed"] == {} and report["genes"]["in_file"] == 8
        table, _ = table_of(path, convert="tpm", gene_lengths=gtf, **flags)
        assert np.allclose(table.values, TPM[:, columns], rtol=1e-5)


def test_a_gene_without_length_is_named_and_left_out_or_the_gtf_refused(tmp_path):
    gtf = write(tmp_path / "g.gtf", exons(GENES[:5]))
    frame = FRAME.copy()
    frame.loc[GENES[5]] = 1
    path = write(tmp_path / "m_counts.csv", frame.to_csv(float_format="%.0f"))
    table, report = table_of(path, convert="tpm", gene_lengths=gtf)
    rate = RATE[:, :5]
    assert np.allclose(table.values, rate / rate.sum(1, keepdims=True) * 1e6, rtol=1e-5) and table.genes == GENES[:5]
    assert report["gene_lengths"]["genes_without_length"] == [GENES[5]]
    assert report["gene_lengths"]["share_of_reads_without_length"] == pytest.approx(max(1 / frame.sum()))
    write(path, FRAME.to_csv(float_format="%.0f"))
    with pytest.raises(InputError, match=rf"g.gtf: no length for 1 of 6 genes of .* \({GENES[5]}\), which hold up to"):
        prepare_table(path, convert="tpm", gene_lengths=gtf)
    with pytest.raises(InputError, match=r"--gene_lengths .* makes TPM of counts; add --convert tpm"):
        prepare_table(path, gene_lengths=gtf)
    fpkm = write(tmp_path / "m_fpkm.csv", (FRAME + 0.5).to_csv())
    with pytest.raises(InputError, match=r"is in FPKM; --convert tpm takes FPKM, or counts with --gene_lengths GTF"):
        prepare_table(fpkm, convert="tpm", gene_lengths=gtf)
