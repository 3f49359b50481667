"""prepare_data.py expression: every form of the same matrix gives the same table, and says what it found."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prepare_data
from common.errors import InputError, run_command
from datasets.expression import read_expression
from datasets.gene_lists import read_gene_list, read_mapping
from datasets.genes import gene_key
from datasets.prepare_table import prepare_table
from datasets.sample_sheets import read_sexes

GENES = [f"ENSG{i:011d}.{i % 5 + 1}" for i in range(1, 7)]
SYMBOLS = ["SFTPC", "GFAP", "ACTB", "TP53", "XIST", "MYC"]
SAMPLES = ["GTEX-A-0626-SM-1", "GTEX-B-0726-SM-2", "GTEX-C-0526-SM-3", "GTEX-D-1126-SM-4"]
VALUES = np.random.default_rng(0).gamma(0.6, 400, (4, 6)).round(3).astype(np.float32)  # TPM; (samples, genes)
FRAME = pd.DataFrame(VALUES.T, index=pd.Index(GENES, name="Name"), columns=SAMPLES)  # genes in rows


def gct(frame=FRAME, counts="56200\t17382"):
    head = "Name\tDescription\t" + "\t".join(frame.columns)
    symbols = dict(zip(GENES, SYMBOLS, strict=True))
    rows = [
        "\t".join([g, symbols.get(g, "SYM"), *(repr(float(v)) for v in row)])
        for g, row in zip(frame.index, frame.values, strict=True)
    ]
    return "\n".join(["#1.2", counts, head, *rows]) + "\n"


def gtf(genes=GENES, symbols=SYMBOLS):
    line = 'chr1\tHAVANA\tgene\t1\t9\t.\t+\t.\tgene_id "{}"; gene_type "{}"; gene_name "{}";\n'
    rows = [
        line.format(g, "protein_coding" if i < 4 else "lncRNA", s)
        for i, (g, s) in enumerate(zip(genes, symbols, strict=True))
    ]
    return "##description\n" + "".join(rows) + rows[0].replace("\tgene\t", "\texon\t")


def pairs(symbols):
    return "".join(f"{gene},{symbol}\n" for gene, symbol in zip(GENES, symbols, strict=True))


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def table_of(path, **flags):
    table, report = prepare_table(path, **flags)
    json.dumps(report, allow_nan=False)
    return table, report


FORMS = {
    "GCT with wrong counts": ("m_tpm.gct.gz", gct),
    "comma": ("m_tpm.csv", FRAME.to_csv),
    "tab": ("m_tpm.tsv", lambda: FRAME.to_csv(sep="\t")),
    "semicolon, decimal comma": ("m_tpm.csv", lambda: FRAME.to_csv(sep=";", decimal=",", float_format="%.6f")),
    "genes in columns": ("m_tpm.csv", FRAME.T.to_csv),
    "genes in columns, tab, gzip": ("m_tpm.tsv.gz", lambda: FRAME.T.to_csv(sep="\t")),
    "byte-order mark": ("m_tpm.csv", lambda: "\ufeff" + FRAME.to_csv()),
    "empty first header, quoted": ("m_tpm.csv", lambda: FRAME.rename_axis(None).to_csv(quoting=2)),
    "header without first field": ("m_tpm.tsv", lambda: FRAME.rename_axis(None).to_csv(sep="\t").lstrip("\t")),
    "annotation": (
        "m_tpm.tsv",
        lambda: FRAME.reset_index().assign(Length=[9] * 6, Chr="chr1").to_csv(sep="\t", index=False),
    ),
    "GEO series matrix": (
        "m_tpm.txt",
        lambda: (
            '!Series_title\t"x"\n!series_matrix_table_begin\n' + FRAME.to_csv(sep="\t") + "!series_matrix_table_end\n"
        ),
    ),
    "dashes turned to dots": ("m_tpm.csv", lambda: FRAME.rename(columns=lambda c: c.replace("-", ".")).to_csv()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_table(tmp_path, form):
    name, text = FORMS[form]
    table, report = table_of(write(tmp_path / name, text()))
    assert list(table.obs.index) == SAMPLES and list(table.obs["donor"]) == ["GTEX-A", "GTEX-B", "GTEX-C", "GTEX-D"]
    assert table.genes == GENES and np.array_equal(table.values, VALUES) and table.unit == "TPM"
    assert report["found"]["identifiers"] == "Ensembl ids with version"
    expected = "genes in columns" if "genes in columns" in form else "genes in rows"
    assert report["found"]["orientation"] == expected


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "h5ad"])
def test_binary_forms(tmp_path, suffix, turned):
    path = tmp_path / f"m_tpm.{suffix}"
    frame = FRAME if turned else FRAME.T
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        import anndata
        import scipy.sparse

        names = {
            "obs": pd.DataFrame(index=frame.index.astype(str)),
            "var": pd.DataFrame(index=frame.columns.astype(str)),
        }
        anndata.AnnData(scipy.sparse.csr_matrix(frame.to_numpy()), **names).write_h5ad(path)
    table, _ = table_of(path)
    assert list(table.obs.index) == SAMPLES and table.genes == GENES and np.array_equal(table.values, VALUES)


def test_symbols_are_mapped_by_a_table_or_a_gtf(tmp_path):
    path = write(tmp_path / "m_tpm.csv", FRAME.set_axis(SYMBOLS).to_csv())
    with pytest.raises(
        InputError, match=r"its genes are named SFTPC, GFAP, ACTB and 3 more, Ensembl ids were expected"
    ):
        prepare_table(path)
    mapping = write(tmp_path / "map.csv", "Gene,Gene.name\n" + pairs(SYMBOLS))
    for source in (mapping, write(tmp_path / "g.gtf.gz", gtf())):
        table, report = table_of(path, mapping=source)
        assert table.genes == GENES and np.array_equal(table.values, VALUES)
        assert report["genes"]["mapped_from_symbols"] == 6
    table, report = table_of(path, genes=tmp_path / "g.gtf.gz", biotype="protein_coding")
    assert table.genes == GENES[:4] and report["genes"]["unmapped"] == SYMBOLS[4:]


def test_symbols_decide_the_orientation_only_where_something_tells(tmp_path):
    frame = FRAME.set_axis(list("abcdef")).set_axis(list("wxyz"), axis=1)
    path = write(tmp_path / "m_tpm.csv", frame.rename_axis("id").to_csv())
    with pytest.raises(InputError, match=r"cannot tell whether genes run in rows \(such as a, b and 4 more\)"):
        prepare_table(path)
    mapping = write(tmp_path / "map.csv", "Gene,symbol\n" + pairs("abcdef"))
    assert len(prepare_table(path, mapping=mapping)[0]) == 4
    assert len(prepare_table(path, mapping=mapping, orientation="rows")[0]) == 4


@pytest.mark.parametrize(("unit", "base"), [("log2p1", 2), ("ln1p", np.e), ("log10p1", 10)])
def test_logged_tpm_is_found_and_brought_back(tmp_path, unit, base):
    rng = np.random.default_rng(1)
    linear = rng.gamma(0.3, 100, (3, 400))
    linear *= 1e6 / linear.sum(1, keepdims=True)
    genes = [f"ENSG{i:011d}" for i in range(400)]
    frame = pd.DataFrame(np.log1p(linear.T) / np.log(base), index=genes, columns=list("abc"))
    path = write(tmp_path / "m_tpm.csv", frame.to_csv())
    table, report = table_of(path)
    assert report["found"]["log"] == unit and report["found"]["unit"] == table.unit == "TPM"
    assert np.allclose(table.values, linear, rtol=1e-4, atol=1e-3) and (table.values >= 0).all()
    assert "with pseudocount 1 gives profiles that sum to 1e+06" in report["found"]["unit_found_by"]
    frame = frame / 3  # no base fits
    write(path, frame.to_csv())
    with pytest.raises(InputError, match=r"the values look logged, but no base .* --unit: tpm, .*: log2p1, ln1p"):
        prepare_table(path)
    assert np.allclose(prepare_table(path, unit="tpm")[0].values, frame.T, rtol=1e-5)
    write(path, pd.DataFrame(np.log2(linear.T + 1e-3), index=genes, columns=list("abc")).to_csv())
    with pytest.raises(InputError, match=r"z-scores and log ratios cannot be brought back .* --unit log2, ln or log10"):
        prepare_table(path)
    assert np.allclose(prepare_table(path, unit="log2")[0].values, linear + 1e-3, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("turned", [False, True])
def test_columns_of_numbers_that_annotate_are_no_values(tmp_path, turned, suffix):
    rng = np.random.default_rng(1)
    linear = rng.gamma(0.3, 100, (200, 3))
    linear *= 1e6 / linear.sum(0)
    symbols = [f"SYM{i}" for i in range(199)] + ["GC"]
    mapping = write(
        tmp_path / "map.csv", "Gene,symbol\n" + "".join(f"ENSG{i:011d},{s}\n" for i, s in enumerate(symbols))
    )
    frame = pd.DataFrame(np.log2(linear + 1), index=pd.Index(symbols, name="id"), columns=list("abc"))
    notes = {"gene_length": 1500, "exon length": 900, "GC_content": 41.5, "GC": 40.5, "age": 61, "RIN": 7, "batch": 3}
    if turned:
        del notes["GC"]  # the gene
    frame = (frame.T.rename_axis("id") if turned else frame).reset_index()
    frame = pd.concat([frame.iloc[:, :2], pd.DataFrame(notes, index=frame.index), frame.iloc[:, 2:]], axis=1)
    path = tmp_path / f"m_tpm.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    table, report = table_of(path, mapping=mapping)
    assert report["found"]["log"] == "log2p1" and list(table.obs.index) == ["a", "b", "c"]
    assert table.values.shape == (3, 200) and np.allclose(table.values, linear.T, rtol=1e-3, atol=1e-2)
    assert report["genes"]["in_file"] == 200 and report["genes"]["unmapped"] == []
    assert set(notes) <= set(report["found"]["text_columns"])
    if turned:
        assert list(table.obs["RIN"]) == ["7"] * 3


@pytest.mark.parametrize("number", ["1,234", "12,345,678", "1,234.5"])
def test_thousands_set_apart_are_not_read_as_decimals(tmp_path, number):
    text = "# a comment\nName\ta\tb\n" + "".join(f"{gene}\t1\t{number}\n" for gene in GENES)
    path = write(tmp_path / "m_tpm.tsv", text)
    with pytest.raises(InputError, match=rf"m_tpm.tsv: line 3, column b: '{number}' may be thousands set apart"):
        prepare_table(path)
    write(path, gct().replace(repr(float(VALUES[0, 0])), number, 1))
    with pytest.raises(InputError, match=rf"line 4, column {SAMPLES[0]}: '{number}' may be"):
        prepare_table(path)
    write(path, text.replace("\t1\t", "\t0,5\t"))  # decides: a decimal comma
    if number == "1,234":
        assert prepare_table(path, unit="tpm")[0].values.tolist() == [[0.5] * 6, [float(np.float32(1.234))] * 6]


def test_units_and_conversions(tmp_path):
    counts = write(tmp_path / "m_counts.csv", FRAME.round().to_csv(float_format="%.0f"))
    table, report = table_of(counts)
    assert table.unit == "counts" and "all values are whole numbers" in report["found"]["unit_found_by"]
    table, report = table_of(counts, convert="cpm", genes=write(tmp_path / "g.csv", f"Gene\nrna_{GENES[0]}\n"))
    whole = np.round(VALUES).astype(np.float64)
    assert table.unit == "CPM" and np.allclose(table.values[:, 0], whole[:, 0] / whole.sum(1) * 1e6, rtol=1e-5)
    fpkm = write(tmp_path / "m_fpkm.csv", FRAME.to_csv())
    assert table_of(fpkm)[0].unit == "FPKM"
    table, _ = table_of(fpkm, convert="tpm")
    assert table.unit == "TPM" and np.allclose(table.values.sum(1), 1e6, rtol=1e-5)
    with pytest.raises(InputError, match=r"is in counts; --convert tpm takes FPKM, or counts with --gene_lengths GTF"):
        prepare_table(counts, convert="tpm")


def test_genes_match_without_version_and_par_y_stays_apart(tmp_path):
    assert gene_key("rna_ENSG00000182378.13_PAR_Y") == gene_key("ENSGR0000182378.8") == "ENSG00000182378_PAR_Y"
    frame = FRAME.set_axis(["ENSG00000182378.20", "ENSG00000182378.20_PAR_Y", *GENES[:4]])
    path = write(tmp_path / "m_tpm.csv", frame.to_csv())
    wanted = ["ENSG00000182378.13_PAR_Y", GENES[1], "ENSG00000182378.13", "ENSG00000000099.1"]
    genes = write(tmp_path / "genes.csv", "Gene\n" + "".join(f"rna_{g}\n" for g in wanted))
    table, report = table_of(path, genes=genes)
    assert table.genes == wanted[:3] and np.array_equal(table.values, VALUES[:, [1, 3, 0]])
    assert report["genes"]["missing"] == wanted[3:] and report["genes"]["filled"] == []
    assert report["genes"]["other_version"] == 2


@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_one_gene_are_summed_or_refused(tmp_path, turned):
    def text(genes):
        frame = FRAME.set_axis(genes)
        return (frame.T if turned else frame).to_csv()

    stem = GENES[0].split(".")[0]
    path = write(tmp_path / "m_tpm.csv", text([f"{stem}.1", *GENES[1:5], f"{stem}.2"]))
    table, report = table_of(path)
    assert np.allclose(table.values[:, 0], VALUES[:, 0] + VALUES[:, 5]) and table.values.shape == (4, 5)
    assert report["genes"]["summed"] == {stem: [f"{stem}.1", f"{stem}.2"]}
    with pytest.raises(InputError, match=rf"gene {stem} stands 2 times \({stem}.1, {stem}.2\)"):
        prepare_table(path, duplicates="refuse")
    write(path, text([GENES[0], *GENES[1:5], GENES[0]]))
    with pytest.raises(InputError, match=r"once was expected; remove the repeats, add them up with --duplicates sum"):
        prepare_table(path)
    assert np.allclose(prepare_table(path, duplicates="sum")[0].values[:, 0], VALUES[:, 0] + VALUES[:, 5])


@pytest.mark.parametrize("turned", [False, True])
def test_a_sample_twice_is_refused(tmp_path, turned):
    frame = FRAME.set_axis([*SAMPLES[:3], SAMPLES[0]], axis=1)
    path = write(tmp_path / "m_tpm.csv", (frame.T if turned else frame).to_csv())
    with pytest.raises(InputError, match=r"sample GTEX-A-0626-SM-1 stands (in columns 2 and 5|2 times)"):
        prepare_table(path)


@pytest.mark.parametrize(
    ("field", "problem"), [("x1", "'x1' is not a number"), ("", "the value is missing"), ("inf", "infinite")]
)
def test_a_bad_value_is_named_by_line_and_column(tmp_path, field, problem):
    lines = gct().splitlines()
    fields = lines[5].split("\t")
    lines[5] = "\t".join([*fields[:3], field, *fields[4:]])
    path = write(tmp_path / "m_tpm.gct", "\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        prepare_table(path)
    assert f"m_tpm.gct: line 6 ({GENES[2]}), column {SAMPLES[1]}: " in str(error.value) and problem in str(error.value)
    if not field:
        table, report = table_of(path, missing="drop")
        assert table.genes == [*GENES[:2], *GENES[3:]] and report["genes"]["lacking_values"] == [GENES[2]]


@pytest.mark.parametrize("form", ["csv", "turned.csv", "parquet", "turned.parquet", "h5ad"])
def test_genes_that_lack_a_value_are_out_of_the_sums_in_every_form(tmp_path, form):
    frame = FRAME.round() + 1
    frame.iloc[1, 2] = frame.iloc[4, 0] = np.nan
    path = tmp_path / f"m_counts.{form.split('.')[-1]}"
    if "csv" in form:
        (frame.T if form == "turned.csv" else frame).to_csv(path)
    elif "parquet" in form:
        (frame.T if form == "turned.parquet" else frame).to_parquet(path)
    else:
        import anndata

        names = {"obs": pd.DataFrame(index=frame.columns), "var": pd.DataFrame(index=frame.index.astype(str))}
        anndata.AnnData(frame.to_numpy().T, **names).write_h5ad(path)
    genes = write(tmp_path / "genes.csv", f"Gene\nrna_{GENES[0]}\nrna_{GENES[1]}\nrna_{GENES[5]}\n")
    whole = frame.dropna().T
    cpm = (whole.div(whole.sum(axis=1), axis=0) * 1e6).to_numpy()
    for wanted, kept, columns in (
        (None, [0, 2, 3, 5], [0, 1, 2, 3]),
        (genes, [0, 5], [0, 3]),  # a gene that lacks a value and is not wanted is out of the sums and named, too
    ):
        table, report = table_of(path, missing="drop", convert="cpm", genes=wanted)
        assert table.genes == [GENES[j] for j in kept] and np.allclose(table.values, cpm[:, columns], rtol=1e-5)
        assert report["genes"]["lacking_values"] == [GENES[1], GENES[4]] and report["genes"]["in_file"] == 6
        assert report["conversion"] == "counts / sum over the 4 genes of the file x 10^6"


@pytest.mark.parametrize("form", ["gct", "turned.csv", "parquet", "turned.parquet", "h5ad"])
def test_a_negative_value_is_named_by_line_and_column(tmp_path, form):
    frame = FRAME.copy()
    frame.iloc[2, 1] = -0.5
    path = tmp_path / f"m_tpm.{form.split('.')[-1]}"
    if form == "gct":
        write(path, gct(frame))
    elif form == "turned.csv":
        frame.T.to_csv(path)
    elif "parquet" in form:
        (frame.T if form == "turned.parquet" else frame).to_parquet(path)
    else:
        import anndata

        names = {"obs": pd.DataFrame(index=frame.columns), "var": pd.DataFrame(index=frame.index.astype(str))}
        anndata.AnnData(frame.to_numpy().T, **names).write_h5ad(path)
    where = {
        "gct": f"line 6 ({GENES[2]}), column {SAMPLES[1]}: the value is negative (-0.5)",
        "turned.csv": f"line 3 ({SAMPLES[1]}), column {GENES[2]}: the value is negative (-0.5)",
        "parquet": f"row {GENES[2]}, column {SAMPLES[1]}: the value is negative (-0.5)",
        "turned.parquet": f"row {SAMPLES[1]}, column {GENES[2]}: the value is negative (-0.5)",
        "h5ad": f"sample {SAMPLES[1]}, gene {GENES[2]}: -0.5",
    }[form]
    for unit, remedy in ((None, "--unit log2, ln or log10"), ("tpm", "TPM cannot have it (given with --unit)")):
        with pytest.raises(InputError) as error:
            prepare_table(path, unit=unit)
        assert f"{path}: {where}, a finite number of at least 0 was expected; " in str(error.value)
        assert remedy in str(error.value)


def test_a_line_of_other_length_and_other_versions_of_gct(tmp_path):
    lines = gct().splitlines()
    path = write(tmp_path / "m_tpm.gct", "\n".join([*lines[:5], lines[5] + "\t7", *lines[6:]]))
    with pytest.raises(InputError, match=rf"line 6 \({GENES[2]}\) has 7 fields, 6 were expected"):
        prepare_table(path)
    with pytest.raises(InputError, match=r"a GCT file of version 1.3; version 1.2 is read"):
        prepare_table(write(path, gct().replace("#1.2", "#1.3")))


def command(*words):
    return run_command(prepare_data.main, prepare_data.build_parser(), ["expression", *map(str, words)])


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import prepare_data as p
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
for name in ("t.csv", "t.h5ad", "earlier.csv", "earlier.h5ad"):
    words = ["expression", "--input", "m_tpm.csv", "--unit", "tpm", "--out", f"out/{name}"]
    print(p.run_command(p.main, p.build_parser(), words))
"""


def test_a_full_disk_is_one_line_that_names_the_table_and_an_earlier_one_stays(tmp_path):
    rng, genes = np.random.default_rng(0), [f"ENSG{i:011d}.1" for i in range(2000)]
    frame = pd.DataFrame(rng.gamma(0.6, 400, (2000, 8)), index=genes, columns=[f"S{i}" for i in range(8)])
    write(tmp_path / "m_tpm.csv", frame.to_csv())
    (tmp_path / "out").mkdir()
    for name in ("earlier.csv", "earlier.h5ad"):
        (tmp_path / "out" / name).write_text("an earlier table")
    words, paths = [sys.executable, "-c", ON_A_FULL_DISK], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["2"] * 4, done.stderr
    names = ("t.csv", "t.h5ad", "earlier.csv", "earlier.h5ad")
    lines = done.stderr.splitlines()
    for line, name in zip(lines, names, strict=True):
        assert f"out/{name}: no space left on the disk (or quota reached): a file may have 16,384 bytes" in line
    left = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert left == dict.fromkeys(("earlier.csv", "earlier.h5ad"), "an earlier table")


def test_the_command_as_in_the_manual(tmp_path, capsys):
    matrix = write(tmp_path / "gene_tpm.gct.gz", gct())
    tissues = ["Lung", "Lung", "Lung", "Brain - Cortex"]
    rows = "".join(f"{s}\t{t.split(' - ')[0]}\t{t}\n" for s, t in zip(SAMPLES, tissues, strict=True))
    attributes = write(tmp_path / "attributes.txt", "SAMPID\tSMTS\tSMTSD\n" + rows)
    phenotypes = write(
        tmp_path / "subjects.txt", "SUBJID\tSEX\tAGE\nGTEX-A\t1\t60-69\nGTEX-B\t2\t50-59\nGTEX-D\t2\t20-29\n"
    )
    genes = write(tmp_path / "genes.csv", "Gene\n" + "".join(f"rna_{g}\n" for g in reversed(GENES)))
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("GTEX-A-0625.svs", "GTEX-B-0925.svs", "GTEX-Q-0125.svs", "notes.txt"):
        (slides / name).touch()
    given = ["--input", matrix, "--attributes", attributes, "--phenotypes", phenotypes, "--genes", genes]
    assert command(*given, "--tissue", "Lung", "--slides", slides, "--out", tmp_path / "lung.csv") == 0
    table = read_expression(tmp_path / "lung.csv")
    assert list(table.obs["wsi_file_name"]) == ["GTEX-A-0625.svs", "GTEX-B-0925.svs"]
    assert list(table.obs["sex"]) == ["male", "female"] and set(table.obs["tissue"]) == {"lung"}
    assert np.array_equal(table.values, VALUES[:2, ::-1]) and table.find("GTEX-A-0625") == 0
    report = json.loads((tmp_path / "lung.report.json").read_text())
    assert report["slides"]["matched_by_donor_only"] == ["GTEX-B-0726-SM-2"]
    assert {u["name"] for u in report["slides"]["unmatched"]} == {"GTEX-C-0526-SM-3", "GTEX-Q-0125.svs"}
    out = capsys.readouterr().out
    assert "samples: 2 of 4 in the table, 3 of the tissue" in out and "slides: 2 of 3 matched" in out
    assert command(*given, "--tissue", "brain", "--out", tmp_path / "brain.h5ad") == 0
    brain = read_expression(tmp_path / "brain.h5ad")
    assert list(brain.obs["tissue"]) == ["brain"]
    assert brain.symbols == dict(zip(map(gene_key, GENES), SYMBOLS, strict=True))
    keep = ["--tissue", "Lung", "--slides", slides, "--keep_unmatched", "--out", tmp_path / "all.csv"]
    assert command(*given, *keep) == 0
    assert list(read_expression(tmp_path / "all.csv").obs["wsi_file_name"])[2] == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tissue", "Lungs"], "no sample of tissue 'Lungs'; nearest: Lung; one of its 1 tissues was expected"),
        (["--genes", "{tmp}/bad.csv"], "bad.csv: line 3: 'TP53' is not an Ensembl gene id; ids like rna_ENSG0"),
        (["--genes", "{tmp}/attributes.txt"], "attributes.txt: no column Gene (found"),
        (
            ["--genes", "{tmp}/g.gtf", "--biotype", "protein"],
            "no gene of biotype protein (it has protein_coding, lncRNA)",
        ),
        (["--attributes", "{tmp}/bad.csv"], "bad.csv: no column SAMPID (found Gene)"),
        (["--slides", "{tmp}/empty"], "empty: no slides found; a folder with slides"),
        (["--slides", "{tmp}/none"], "none: no such folder or list of slides; check --slides"),
        (["--slides", "{tmp}/list.txt"], "list.txt: none of its 1 slides belongs to one of 4 samples"),
        (["--input", "{tmp}/none.gct"], "none.gct: no such file; a table was expected"),
        (["--out", "{tmp}/x.tsv"], "x.tsv: tables are written as .csv or .h5ad"),
        (["--biotype", "protein_coding"], "--biotype protein_coding needs a GTF; name it with --genes"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(tmp_path, capsys, flags, message):
    write(tmp_path / "m_tpm.gct", gct())
    write(tmp_path / "attributes.txt", "SAMPID\tSMTSD\n" + "".join(f"{s}\tLung\n" for s in SAMPLES))
    write(tmp_path / "bad.csv", f"Gene\nrna_{GENES[0]}\nTP53\n")
    write(tmp_path / "g.gtf", gtf())
    write(tmp_path / "list.txt", "GTEX-Z-0125.svs\n")
    (tmp_path / "empty").mkdir()
    base = ["--input", tmp_path / "m_tpm.gct", "--attributes", tmp_path / "attributes.txt", "--out", tmp_path / "o.csv"]
    assert command(*base, *(f.format(tmp=tmp_path) for f in flags)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("o.*")) and not list(tmp_path.glob(".*"))


def test_a_gff3_or_a_gene_without_id_is_named(tmp_path):
    place = "chr1\tHAVANA\tgene\t1\t9\t.\t+\t.\t"
    gff3 = write(tmp_path / "g.gff3", f"##gff-version 3\n{place}ID={GENES[0]};gene_id={GENES[0]};gene_name=A\n")
    ensembl = write(tmp_path / "e.gff3.gz", f"##gff-version 3\n{place}ID=gene:ENSG00000000001;Name=A\n")
    for path in (gff3, ensembl):
        for read in (read_gene_list, read_mapping):
            with pytest.raises(InputError, match=r"g?e?\.gff3.*: line 2 is GFF3 .* a GTF was expected; download"):
                read(path)
    lines = gtf().splitlines(keepends=True)
    lines[3] = lines[3].replace("gene_id", "id")
    for first in (1, 3):  # the faulty line among others, and first
        text = "".join(lines[:1] + lines[first:])
        path = write(tmp_path / "g.gtf", text)
        with pytest.raises(InputError, match=rf"g.gtf: line {5 - first} is a gene without gene_id .* mend it"):
            read_gene_list(path)


def test_lines_of_a_sheet_are_counted_with_comments_and_blank_lines(tmp_path):
    head = "# dbGaP\n# phs000424\n\nSUBJID\tSEX\n"
    sheet = write(tmp_path / "s.txt", head + "GTEX-A\t1\n\nGTEX-B\t2\n")
    assert read_sexes(sheet)["sex"].to_dict() == {"GTEX-A": "male", "GTEX-B": "female"}
    write(sheet, head + "GTEX-A\t1\n\nGTEX-B\tx\n")
    with pytest.raises(InputError, match=r"s.txt: line 7, column SEX: 'x'"):
        read_sexes(sheet)
    write(sheet, head + "GTEX-A\t1\n\nGTEX-A\t2\n")
    with pytest.raises(InputError, match=r"SUBJID GTEX-A stands on lines 5, 7, expected once"):
        read_sexes(sheet)
    with pytest.raises(InputError, match=r"no column SUBJID"):
        read_sexes(write(sheet, "#\n\n"))


def test_gene_lists_and_mappings(tmp_path):
    assert read_gene_list(write(tmp_path / "a.txt", "\n".join(GENES))).genes == GENES
    assert read_gene_list(write(tmp_path / "a.gtf", gtf()), "protein_coding").genes == GENES[:4]
    with pytest.raises(InputError, match=r"are the same gene, expected once"):
        read_gene_list(write(tmp_path / "a.csv", f"Gene\n{GENES[0]}\n{GENES[0]}9\n"))
    mapping = write(
        tmp_path / "m.tsv", f"hgnc_id\tsymbol\tensembl\n1\tA\t{GENES[0]}\n2\tA\t{GENES[1]}\n3\tB\t{GENES[2]}\n"
    )
    assert read_mapping(mapping).symbols == {"A": GENES[:2], "B": [GENES[2]]}
    path = write(tmp_path / "m_tpm.csv", FRAME.iloc[:2].set_axis(["A", "B"]).to_csv())
    table, report = table_of(path, mapping=mapping)
    assert table.genes == [GENES[2]] and report["genes"]["ambiguous"] == ["A"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.permutations(range(4)), st.booleans(), st.sampled_from(["\t", ",", ";"]))
def test_no_order_and_no_form_changes_a_profile(tmp_path, genes, samples, turned, delimiter):
    frame = FRAME.iloc[list(genes), list(samples)]
    path = write(tmp_path / "m_tpm.txt", (frame.T if turned else frame).to_csv(sep=delimiter))
    table, _ = prepare_table(path)
    assert np.array_equal(table.rows(SAMPLES).aligned(GENES)[0], VALUES)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5), st.integers(0, 6), st.floats(0.05, 0.45))  # halves would look like copies
def test_a_gene_split_over_two_rows_is_the_same_gene(tmp_path, gene, place, share):
    """The profile does not change when one gene's expression is split over two versions of its id, anywhere."""
    part = FRAME.iloc[[gene]] * np.float32(share)
    rest = FRAME.copy()
    rest.iloc[gene] -= part.iloc[0]
    part.index = [GENES[gene].split(".")[0] + ".77"]
    frame = pd.concat([rest.iloc[:place], part, rest.iloc[place:]])
    table, report = prepare_table(write(tmp_path / "m_tpm.csv", frame.to_csv()))
    assert np.allclose(table.aligned(GENES)[0], VALUES, rtol=1e-5, atol=1e-3) and len(report["genes"]["summed"]) == 1
