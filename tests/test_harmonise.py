"""Profiles of another platform on the scale of a reference: known answers, training donors, refusals, the command."""

import json

import numpy as np
import pandas as pd
import pytest
from betavae_cohort import write_cohort
from PIL import Image

import betaVAE_training
import prepare_data
from common.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint
from common.errors import InputError, run_command
from datasets.expression import ExpressionTable, read_expression, splits_of, write_expression
from datasets.harmonise import (
    LEAST_PROFILES,
    harmonise,
    match_location_and_scale,
    quantile_normalise,
    read_reference,
)

N = 14  # profiles of the other platform


def call(command, *words):
    return run_command(command.main, command.build_parser(), [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained beta-VAE, the tables behind it, and held-out donors' lungs by a platform that changes each gene."""
    folder = tmp_path_factory.mktemp("cohort")
    assert call(betaVAE_training, "--config", write_cohort(folder, n_donors=90, num_epochs=30)) == 0
    table = read_expression(folder / "lung.h5ad")
    table = table.rows(np.flatnonzero(np.array(splits_of(table.obs, 99)) == "test")[:N])
    rng = np.random.default_rng(5)
    logs = np.log1p(table.values) * rng.normal(0.92, 0.05, 150) + rng.normal(0, 0.6, 150)
    names = [f"SRR{i:03d}_lung" for i in range(N)]
    obs = pd.DataFrame({"wsi_file_name": "", "donor": names, "tissue": "lung"}, names, dtype=object)
    new = ExpressionTable(np.expm1(logs).clip(0).astype(np.float32), table.genes, obs)
    write_expression(new, folder / "geo.csv")
    return folder


@pytest.fixture
def reference(folder):
    return read_reference(folder / "lung.h5ad", 99)


# ---- The formulas ----


def test_quantiles_of_known_numbers():
    reference = np.array([[4.0, 1, 7], [2, 9, 6]])  # sorted: 1 4 7 and 2 6 9; mean 1.5 5 8
    assert quantile_normalise(np.array([[30.0, 10, 20]]), reference).tolist() == [[8, 1.5, 5]]
    tied = quantile_normalise(np.array([[0.0, 3, 0], [2, 2, 2]]), reference)
    assert np.allclose(tied, [[3.25, 8, 3.25], [14.5 / 3] * 3])


def test_location_and_scale_become_the_references():
    rng = np.random.default_rng(0)
    x, reference = rng.normal(3, 2, (10, 40)), rng.normal(1, 0.5, (30, 40))
    x[:, 7] = 4
    moved = match_location_and_scale(x, reference)
    assert np.allclose(moved.mean(0), reference.mean(0))
    assert np.allclose(np.delete(moved.std(0), 7), np.delete(reference.std(0), 7))
    assert np.allclose(moved[:, 7], reference[:, 7].mean())
    assert (np.argsort(moved[:, 0]) == np.argsort(x[:, 0])).all()


# ---- Tables ----


def test_only_training_donors_are_the_reference(folder, reference):
    table = read_expression(folder / "lung.h5ad")
    split = np.array(splits_of(table.obs, 99))
    assert list(reference.obs.index) == list(table.obs.index[split == "train"])
    table.obs["assigned_split"] = np.where(np.arange(len(table)) < 20, "train", "test")
    write_expression(table, folder / "assigned.h5ad")
    assert list(read_reference(folder / "assigned.h5ad", 99).obs.index) == list(table.obs.index[:20])
    table.obs["assigned_split"] = "test"
    write_expression(table, folder / "none.h5ad")
    with pytest.raises(InputError, match="none of its 90 rows is in split train"):
        read_reference(folder / "none.h5ad", 99)


@pytest.mark.parametrize("method", ["quantile", "reference"])
def test_genes_in_another_order_version_or_absent_change_nothing_of_the_others(folder, reference, method):
    table = read_expression(folder / "geo.csv", "lung")
    made, report = harmonise(table, reference, method)
    assert report["genes_left_out"] == [] and report["tissues"] == {
        "lung": {"profiles": N, "reference_profiles": len(reference)}
    }
    order = np.random.default_rng(0).permutation(150)
    genes = [f"{table.genes[j].partition('.')[0]}.9" for j in order] + ["ENSG99999999999.1"]
    more = np.hstack([table.values[:, order], np.ones((N, 1), np.float32)])
    other, report = harmonise(ExpressionTable(more, genes, table.obs, "TPM", table.source), reference, method)
    assert report["genes_left_out"] == ["ENSG99999999999.1"] and other.genes == genes[:-1]
    assert np.allclose(other.values, made.values[:, order], rtol=1e-5)


def test_a_table_is_not_harmonised_twice(folder, reference, tmp_path):
    made, _ = harmonise(read_expression(folder / "geo.csv", "lung"), reference, "quantile")
    assert set(made.obs["harmonised"]) == {"quantile onto lung of lung.h5ad"}
    for name in ("twice.csv", "twice.h5ad"):
        write_expression(made, tmp_path / name)
        with pytest.raises(InputError, match=f"{N} of {N} profiles are harmonised already"):
            harmonise(read_expression(tmp_path / name), reference, "reference")
        words = ["--input", tmp_path / name, "--out", tmp_path / "x.csv", "--harmonise", "quantile"]
        assert call(prepare_data, "expression", *words, "--reference", folder / "lung.h5ad") == 2
        assert call(prepare_data, "expression", *words[:4]) == 0  # and the column is kept
        assert set(read_expression(tmp_path / "x.csv").obs["harmonised"]) == {"quantile onto lung of lung.h5ad"}


def test_what_cannot_be_harmonised_is_refused(folder, reference):
    table = read_expression(folder / "geo.csv", "lung")
    few = table.rows(np.arange(LEAST_PROFILES - 1))
    with pytest.raises(InputError, match="7 profiles of lung; --harmonise reference needs at least 8"):
        harmonise(few, reference, "reference")
    assert len(harmonise(few, reference, "quantile")[0]) == 7
    with pytest.raises(InputError, match="7 training profiles of lung, at least 8"):
        harmonise(table, reference.rows(np.arange(7)), "quantile")
    liver = ExpressionTable(table.values, table.genes, table.obs.assign(tissue="liver"), "TPM", "geo.csv")
    with pytest.raises(
        InputError, match=r"tissue liver: .* has lung; name the one to compare with by --reference_tissue"
    ):
        harmonise(liver, reference, "quantile")
    assert len(harmonise(liver, reference, "quantile", "lung")[0]) == N
    part = ExpressionTable(table.values[:, :60], table.genes[:60], table.obs, "TPM", "geo.csv")
    with pytest.raises(InputError, match="shares 60 genes with the 150"):
        harmonise(part, reference, "quantile")
    counts = ExpressionTable(table.values, table.genes, table.obs, "counts", "geo.csv")
    with pytest.raises(InputError, match="is in counts, TPM was expected"):
        harmonise(counts, reference, "quantile")


# ---- The command ----


@pytest.mark.parametrize(
    ("own", "source", "found"),
    [
        ("lung", "geo.csv", True),
        ("lung_tumour", "geo.csv", False),
        ("", "GSE1_lung_coding.csv", True),
        ("", "GSE1_lungs.csv", False),
        ("", "geo.csv", False),
    ],
)
def test_a_profile_is_compared_with_its_own_tissue_by_name(folder, reference, own, source, found):
    table = read_expression(folder / "geo.csv", "lung")
    table = ExpressionTable(table.values, table.genes, table.obs.assign(tissue=own), "TPM", source)
    liver = reference.obs["tissue"].where(np.arange(len(reference)) % 3 > 0, "liver")
    obs = reference.obs.assign(tissue=liver)
    two = ExpressionTable(reference.values, reference.genes, obs, "TPM", reference.source)
    if found:
        assert harmonise(table, two, "quantile")[1]["tissues"]["lung"]["reference_profiles"] == (liver == "lung").sum()
    else:
        with pytest.raises(InputError, match="has liver, lung; name the one to compare with by --reference_tissue"):
            harmonise(table, two, "quantile")


def prepare(folder, out, *words):
    return call(prepare_data, "expression", "--input", folder / "geo.csv", "--out", out, *words)


@pytest.mark.parametrize("method", ["quantile", "reference"])
def test_profiles_before_and_after_are_reported_and_drawn(folder, tmp_path, capsys, method):
    out, vae = tmp_path / "geo.h5ad", ["--checkpoint", folder / "run"]
    assert prepare(folder, out, *vae, "--harmonise", method, "--reference", folder / "lung.h5ad") == 0
    report = json.loads((tmp_path / "geo.report.json").read_text())
    found, said = report["harmonised"], capsys.readouterr()
    assert found["method"] == method and found["split_seed"] == 99 and found["far_before"] == N
    assert len(report["distance"]["profiles"]) == N and "distance to the training cloud" in said.out
    with Image.open(tmp_path / "geo.harmonise.png") as picture:
        assert picture.width > 1000
    if method == "reference":
        assert found["misfit_after"] < 0.6 * found["misfit_before"] and found["far_after"] < N / 2
    else:  # what shifts one gene against another stays
        assert found["far_after"] == N and f"{N} of {N} profiles beyond percentile" in said.err


def test_the_split_seed_says_who_the_training_donors_are_and_the_checkpoints_wins(folder, tmp_path, capsys):
    words = ["--harmonise", "quantile", "--reference", folder / "lung.h5ad"]
    tables = {}
    for seed, flags in ((99, []), (7, ["--split_seed", 7])):
        assert prepare(folder, tmp_path / "o.h5ad", *words, *flags) == 0
        found, said = json.loads((tmp_path / "o.report.json").read_text())["harmonised"], capsys.readouterr()
        tables[seed] = read_expression(tmp_path / "o.h5ad").values
        assert found["split_seed"] == seed and f"; split_seed {seed}; " in said.out
        donors = len(read_reference(folder / "lung.h5ad", seed))
        assert found["tissues"]["lung"]["reference_profiles"] == donors
    assert not np.allclose(tables[99], tables[7])
    flags = ["--split_seed", 7, "--checkpoint", folder / "run"]
    assert prepare(folder, tmp_path / "o.h5ad", *words, *flags) == 0
    said = capsys.readouterr()
    assert "; split_seed 99; " in said.out and "was trained under 99: that is used" in said.err
    assert np.allclose(read_expression(tmp_path / "o.h5ad").values, tables[99])


@pytest.mark.parametrize("suffix", ["csv", "h5ad"])
def test_what_is_harmonised_has_the_unit_of_the_reference(folder, tmp_path, capsys, suffix):
    out = tmp_path / f"o.{suffix}"
    words = ["--unit", "fpkm", "--harmonise", "quantile", "--reference", folder / "lung.h5ad"]
    assert prepare(folder, out, *words) == 0
    report, said = json.loads((tmp_path / "o.report.json").read_text()), capsys.readouterr()
    assert read_expression(out).unit == report["unit_of_table"] == report["harmonised"]["unit"] == "TPM"
    assert report["harmonised"]["unit_before"] == report["found"]["unit"] == "FPKM"
    assert report["harmonised"]["scale"] == "log1p of TPM" and "; FPKM before, TPM now" in said.out
    assert "is in FPKM, TPM was expected" in said.err


@pytest.mark.parametrize("method", ["quantile", "reference"])
def test_a_gene_that_the_platform_did_not_measure_is_named_though_harmonising_moves_its_zeros(folder, tmp_path, method):
    table = read_expression(folder / "geo.csv", "lung")
    table.values[:, 7] = 0
    write_expression(table, tmp_path / "geo.csv")
    words = ["--input", tmp_path / "geo.csv", "--out", tmp_path / "o.h5ad", "--checkpoint", folder / "run"]
    words += ["--harmonise", method, "--reference", folder / "lung.h5ad"]
    assert call(prepare_data, "expression", *words) == 0
    found = json.loads((tmp_path / "o.report.json").read_text())["coverage"]
    assert [zero["gene"] for zero in found["zero_in_all_samples"]] == [table.genes[7]] and found["missing"] == []
    assert found["weight_zero_in_all_samples"] > 0
    if method == "reference":
        assert read_expression(tmp_path / "o.h5ad").values[:, 7].any()  # else there was nothing to hide


def test_without_harmonising_the_user_is_told_what_is_far(folder, tmp_path, capsys):
    assert prepare(folder, tmp_path / "geo.csv", "--checkpoint", folder / "run") == 0
    said = capsys.readouterr()
    assert f"{N} of {N} profiles beyond percentile 99.5" in said.out and "See --harmonise" in said.err
    assert not (tmp_path / "geo.harmonise.png").exists()
    assert json.loads((tmp_path / "geo.report.json").read_text())["distance"]["far"] == [
        f"SRR{i:03d}_lung" for i in range(N)
    ]


def test_without_a_checkpoint_nothing_is_compared_or_drawn(folder, tmp_path, capsys):
    words = ["--harmonise", "quantile", "--reference", folder / "lung.h5ad"]
    assert prepare(folder, tmp_path / "geo.csv", *words) == 0
    assert "name a beta-VAE with --checkpoint" in capsys.readouterr().out
    assert "misfit_after" not in json.loads((tmp_path / "geo.report.json").read_text())["harmonised"]
    assert not (tmp_path / "geo.harmonise.png").exists()


def test_that_nothing_is_drawn_of_a_checkpoint_without_distances_is_said(folder, tmp_path, capsys):
    state, _ = load_checkpoint(resolve_checkpoint(folder / "run"), "betavae")
    del state["held_out_distances"]  # as in an older file
    save_checkpoint(tmp_path / "old.pt", "betavae", state)
    words = ["--checkpoint", tmp_path / "old.pt", "--harmonise", "quantile", "--reference", folder / "lung.h5ad"]
    assert prepare(folder, tmp_path / "o.csv", *words) == 0
    said, picture = capsys.readouterr(), tmp_path / "o.harmonise.png"
    assert f"{picture}: not drawn, since {tmp_path}/old.pt tells no distances to compare" in said.out
    assert "holds no validation donors' distances" in said.err and not picture.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--harmonise", "quantile"], "name it with --reference"),
        (["--reference", "x.csv"], "belong to --harmonise"),
        (["--split_seed", "7"], "belong to --harmonise"),
        (["--harmonise", "quantile", "--reference", "nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(folder, tmp_path, capsys, words, said):
    assert prepare(folder, tmp_path / "geo.csv", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "geo.csv").exists()
