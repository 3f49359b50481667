"""Expression tables: what is read is what was written, in any gene order, from the cache or not."""

import gzip
import os
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import DataSettings
from common.errors import InputError
from datasets import reference_csv
from datasets.expression import ExpressionTable, read_cohort_tables, read_expression, write_expression
from datasets.table_cache import cache_path, load_cache
from models.expression_scaler import ExpressionScaler

GENES = [f"ENSG{i:011d}.{i % 7 + 1}" for i in range(1, 9)]


def make_table(n=5, genes=GENES, seed=0, tissue="lung", first=0):
    rng = np.random.default_rng(seed)
    names = [f"GTEX-{first + i:04d}-0625.svs" for i in range(n)]
    obs = pd.DataFrame(
        {"wsi_file_name": names, "donor": [n[:9] for n in names], "tissue": tissue}, index=names, dtype=object
    )
    return ExpressionTable(rng.gamma(0.5, 200, (n, len(genes))).astype(np.float32), list(genes), obs)


@pytest.mark.parametrize("suffix", [".csv", ".h5ad"])
def test_write_and_read_again_bit_for_bit(tmp_path, suffix):
    table = make_table()
    path = tmp_path / f"t{suffix}"
    write_expression(table, path)
    for _ in range(2):  # the second time from the cache
        back = read_expression(path)
        assert np.array_equal(back.values, table.values) and back.values.dtype == np.float32
        assert back.genes == table.genes and back.unit == "TPM" and back.source == str(path)
        assert back.obs[["wsi_file_name", "donor", "tissue"]].equals(table.obs)


def test_the_references_csv_has_its_form(tmp_path):
    write_expression(make_table(2), tmp_path / "lung.csv")
    header = (tmp_path / "lung.csv").read_text().splitlines()[0].split(",")
    assert header[0] == "wsi_file_name" and header[-1] == "rna_" + GENES[-1]
    assert pd.read_csv(tmp_path / "lung.csv").filter(like="rna_").shape == (2, len(GENES))


def test_rows_and_find(tmp_path):
    table = make_table()
    table.source = "lung.csv"
    assert table.find("GTEX-0003-0625") == table.find("GTEX-0003-0625.svs") == 3
    part = table.rows(["GTEX-0003-0625", "GTEX-0001-0625.svs"])
    assert np.array_equal(part.values, table.values[[3, 1]]) and list(part.obs["donor"]) == ["GTEX-0003", "GTEX-0001"]
    assert len(table.rows(np.array([True, False, True, False, False]))) == 2
    with pytest.raises(
        InputError, match=r"lung.csv: no sample or slide named GTEX-003-0625 among 5; nearest: GTEX-0003"
    ):
        table.find("GTEX-003-0625")


def test_aligned_takes_any_order_and_version_and_never_fills_zero(tmp_path):
    table = make_table()
    other = [g.split(".")[0] + ".99" for g in reversed(GENES)]
    values, coverage = table.aligned(other)
    assert coverage == 1 and np.array_equal(values, table.values[:, ::-1])
    values, coverage = table.aligned([*GENES, "ENSG00000000999.1"])
    assert coverage == pytest.approx(8 / 9) and np.isnan(values[:, -1]).all()
    assert np.array_equal(values[:, :-1], table.values)
    with pytest.raises(InputError, match=r"has 8 of the 16 expected genes \(50.0%\), at least 80% were expected"):
        table.aligned([*GENES, *(f"ENSG{i:011d}" for i in range(900, 908))])
    par, plain = "ENSG00000002586.20_PAR_Y", "ENSG00000002586.20"
    table.genes[0] = par
    assert np.isnan(table.aligned([plain], 0.0)[0]).all() and table.aligned([par])[1] == 1


def test_a_table_in_another_unit_is_refused_or_named(capsys):
    table = make_table()
    table.source = "lung.csv"
    assert table.aligned(GENES, unit="tpm")[1] == 1 and not capsys.readouterr().err
    table.unit = "FPKM"
    assert np.array_equal(table.aligned(GENES, unit="TPM")[0], table.values)
    assert "lung.csv: is in FPKM, TPM was expected" in capsys.readouterr().err
    for here, expected in (("counts", "TPM"), ("counts", "CPM"), ("FPKM", "counts")):
        table.unit = here
        with pytest.raises(InputError, match=rf"lung.csv: is in {here}, {expected} was expected; .*--convert tpm"):
            table.aligned(GENES, unit=expected)


def test_profiles_without_slide_are_read_as_they_are(tmp_path):
    path = tmp_path / "GSE120795_lung_proteincoding.csv"
    columns = ",".join("rna_" + g for g in GENES)
    path.write_text(f",{columns}\n0,{','.join('1' * 8)}\n1,{','.join('2' * 8)}\n")
    table = read_expression(path, tissue="Lung")
    assert list(table.obs.index) == ["GSE120795_lung_proteincoding_0", "GSE120795_lung_proteincoding_1"]
    assert list(table.obs["wsi_file_name"]) == ["", ""] and set(table.obs["tissue"]) == {"lung"}
    path.write_text(f"sample,{columns}\nSRR1,{','.join('1' * 8)}\n")
    assert list(read_expression(path).obs.index) == ["SRR1"]


def test_cohort_stacks_tables_of_any_gene_order(tmp_path):
    lung, brain = make_table(40), make_table(40, GENES[::-1], seed=1, tissue="Brain - Cortex", first=500)
    write_expression(lung, tmp_path / "a.csv")
    write_expression(brain, tmp_path / "b.h5ad")
    cohort = read_cohort_tables(DataSettings(path_csv=[str(tmp_path / "a.csv"), str(tmp_path / "b.h5ad")]))
    assert np.array_equal(cohort.values, np.concatenate([lung.values, brain.values[:, ::-1]]))
    assert list(cohort.obs["table"]) == [0] * 40 + [1] * 40
    assert set(cohort.obs["tissue"]) == {"lung", "brain_cortex"} and set(cohort.obs["split"]) == {
        "train",
        "val",
        "test",
    }


@pytest.mark.parametrize("form", ["plain", "bom", "semicolon", "decimal comma", "gzip", "crlf", "quoted"])
def test_the_same_table_in_any_spelling(tmp_path, form):
    text = "wsi_file_name,rna_ENSG00000000001.2,rna_ENSG00000000002.3\nA.svs,1.5,2\nB.svs,0,1e3\n"
    raw = {
        "bom": "\ufeff" + text,
        "semicolon": text.replace(",", ";"),
        "decimal comma": text.replace(",", ";").replace("1.5", "1,5"),
        "crlf": text.replace("\n", "\r\n"),
        "quoted": text.replace("A.svs", '"A.svs"').replace("wsi_file_name", '"wsi_file_name"'),
    }.get(form, text).encode()
    path = tmp_path / ("t.csv.gz" if form == "gzip" else "t.csv")
    path.write_bytes(gzip.compress(raw) if form == "gzip" else raw)
    table = read_expression(path)
    assert table.values.tolist() == [[1.5, 2], [0, 1000]] and list(table.obs.index) == ["A.svs", "B.svs"]
    assert table.genes == ["ENSG00000000001.2", "ENSG00000000002.3"] and set(table.obs["tissue"]) == {"t"}


@pytest.mark.parametrize("quoted", [None, 0, 4])
def test_blocks_of_lines_and_quotes_anywhere_change_nothing(tmp_path, monkeypatch, quoted):
    rng = np.random.default_rng(0)
    values = rng.gamma(1, 9, (5, 3)).astype(np.float32)
    words = [f"GTEX-{i}-0625.svs,GTEX-{i}" for i in range(5)]
    if quoted is not None:
        words[quoted] = f'GTEX-{quoted}-0625.svs,"GTEX-{quoted}"'
    lines = [f"{word},{','.join(map(str, row))}" for word, row in zip(words, values, strict=True)]
    head = "wsi_file_name,donor,rna_ENSG00000000001.1,rna_ENSG00000000002.1,rna_ENSG00000000003.1"
    (tmp_path / "t.csv").write_text("\n".join([head, *lines[:2], "", *lines[2:]]) + "\n")
    monkeypatch.setattr(reference_csv, "BLOCK_BYTES", 120)
    table = read_expression(tmp_path / "t.csv")
    assert np.array_equal(table.values, values) and list(table.obs["donor"]) == [f"GTEX-{i}" for i in range(5)]


def test_a_decimal_comma_is_seen_below_the_first_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "wsi_file_name;rna_ENSG00000000001.2;rna_ENSG00000000002.3\nA.svs;1;2\nB.svs;0;2,250\nC.svs;0,5;3\n"
    )
    assert read_expression(path).values.tolist() == [[1, 2], [0, 2.25], [0.5, 3]]


def test_the_cache_serves_its_csv_and_no_other(tmp_path):
    path = tmp_path / "t.csv"
    write_expression(make_table(), path)
    read_expression(path)
    assert load_cache(path) is not None
    text = path.read_text()
    old = os.stat(path)
    changed = text.replace("0000-0625", "0009-0625")  # same size, same time
    path.write_text(changed)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert "GTEX-0009-0625.svs" in read_expression(path).obs.index
    path.write_text(text)
    assert "GTEX-0000-0625.svs" in read_expression(path).obs.index
    past = time.time_ns() - 10**11
    os.utime(path, ns=(past, past))  # touched, the content is the same: the cache still serves
    assert load_cache(path) is not None


def test_a_damaged_cache_is_ignored(tmp_path):
    path = tmp_path / "t.csv"
    table = make_table()
    write_expression(table, path)
    read_expression(path)
    whole = cache_path(path).read_bytes()
    other_gene = whole.replace(GENES[2].encode(), b"ENSG00000000777.4", 1)
    other_donor = whole.replace(b'"GTEX-0003"', b'"GTEX-0009"', 1)
    assert len(other_gene) == len(other_donor) == len(whole) and whole not in (other_gene, other_donor)
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    swapped = whole[:-8] + whole[-4:] + whole[-8:-4]
    for bad in (b"", whole[:40], whole[:-4], flipped, swapped, b"x" + whole, other_gene, other_donor):
        cache_path(path).write_bytes(bad)
        assert load_cache(path) is None
        assert np.array_equal(read_expression(path).values, table.values)
    assert cache_path(path).read_bytes() != whole[:40] and load_cache(path) is not None


def test_a_folder_that_cannot_be_written_needs_no_cache(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    write_expression(make_table(), path)

    def refuse(*_):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr("datasets.table_cache.atomic_path", refuse)
    assert len(read_expression(path)) == 5 and not cache_path(path).exists()


def test_a_unit_other_than_tpm_survives_the_csv(tmp_path):
    table = make_table()
    table.unit = "counts"
    write_expression(table, tmp_path / "t.csv")
    back = read_expression(tmp_path / "t.csv")
    assert back.unit == "counts" and "unit" not in back.obs


def test_a_table_that_looks_logged_is_warned_of(tmp_path, capsys):
    genes = [f"ENSG{i:011d}.1" for i in range(1000)]
    table = make_table(3, genes)
    table.values = np.log1p(table.values)
    write_expression(table, tmp_path / "t.csv")
    read_expression(tmp_path / "t.csv")
    assert "the table looks logged" in capsys.readouterr().err


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(GENES))), st.permutations(range(5)), st.integers(0, 99))
def test_any_order_of_genes_and_rows_and_any_version_gives_the_same_profiles(tmp_path, order, rows, version):
    table = make_table()
    genes = [f"{GENES[j].split('.')[0]}.{version}" for j in order]
    obs = table.obs.iloc[list(rows)]
    other = ExpressionTable(table.values[np.ix_(rows, order)], genes, obs)
    write_expression(other, tmp_path / "p.csv")
    back = read_expression(tmp_path / "p.csv")
    values, coverage = back.rows(list(table.obs.index)).aligned(GENES)
    assert coverage == 1 and np.array_equal(values, table.values)


def test_fit_transform_is_fit_and_transform():
    values = torch.from_numpy(make_table(300).values)
    values[:, 2] = 7.0  # a constant gene
    values[:, 3] = 1e4 + torch.rand(300)  # a spread far below its level
    logged = values.double().log1p()
    std = logged.std(0, correction=0)
    std[2] = 1.0
    expected = ((logged - logged.mean(0)) / std).float()
    fitted = ExpressionScaler.fit(values, missing="zero")
    scaler, scaled = ExpressionScaler.fit_transform(values)
    assert torch.equal(scaler.mean, fitted.mean) and torch.equal(scaler.std, fitted.std) and fitted.missing == "zero"
    assert torch.allclose(scaler.mean, logged.mean(0).float(), rtol=1e-6)
    assert torch.allclose(scaler.std, std.float(), rtol=2e-3)
    assert torch.allclose(scaled, expected, atol=5e-2)
    others = [0, 1, 4, 5, 6, 7]
    assert torch.allclose(scaled[:, others], expected[:, others], atol=1e-5)
    assert torch.allclose(fitted.transform(values)[:, others], expected[:, others], atol=1e-5)
    again = values.clone()
    assert torch.equal(ExpressionScaler.fit_transform(again, out=again)[1], scaled)
