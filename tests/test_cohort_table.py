"""prepare_data.py cohort: one table of slides, and what does not fit together."""

import json
from pathlib import Path

import gan_toy
import pandas as pd
import pytest

import prepare_data
from datasets.expression import read_expression, write_expression
from datasets.keys import split_of

COLUMNS = ["slide", "sample", "donor", "tissue", "sex", "split", "tiles", "coverage"]
TABLES = "cohort --table data/lung.csv data/brain.csv --tiles tiles/lung tiles/brain"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort_table")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gan_toy.make_cohort(folder)
    lines = [f"GTEX-D{i:02d}\t{1 + i % 2}" for i in range(gan_toy.N_DONORS - 1)]  # the last donor is missing
    (folder / "phenotypes.txt").write_text("\n".join(["SUBJID\tSEX", *lines]) + "\n")
    return folder


work = gan_toy.cohort


def run(words):
    return gan_toy.run(prepare_data, words)


def test_joins_tables_tiles_and_phenotypes(work, capsys):
    for suffix in (".tar", ".json"):
        Path(f"tiles/lung/GTEX-D03-0625{suffix}").unlink()  # expression without slide
        Path(f"tiles/brain/GTEX-D04-3025{suffix}").rename(f"tiles/brain/spare{suffix}")  # and a slide without
    words = f"{TABLES} --phenotypes phenotypes.txt --checkpoint checkpoints/betavae_tissues.pt --out out/cohort.csv"
    assert run(words) == 0
    said = capsys.readouterr().out
    table = pd.read_csv("out/cohort.csv", dtype=str, keep_default_na=False)
    assert list(table) == COLUMNS and len(table) == 2 * gan_toy.N_DONORS - 2
    row = table.set_index("slide").loc["GTEX-D05-3025"]
    assert row.to_dict() == {
        "sample": "GTEX-D05-3025.svs",
        "donor": "GTEX-D05",
        "tissue": "brain",
        "sex": "female",
        "split": split_of("GTEX-D05", 99),
        "tiles": "6",
        "coverage": "1.0000",
    }
    report = json.loads(Path("out/cohort.report.json").read_text())
    assert [one["name"] for one in report["expression_without_slide"]] == ["GTEX-D03-0625.svs", "GTEX-D04-3025.svs"]
    assert [one["name"] for one in report["slides_without_expression"]] == ["spare"]
    assert len(report["donors_in_several_tissues"]) == 22 and report["tiles"] == 6 * 46
    assert report["tile_folders"] == ["tiles/lung", "tiles/brain"] and report["split_seed"] == 99
    assert report["donors_in_several_tissues"]["GTEX-D00"] == ["brain", "lung"]
    assert report["donors_without_sex"] == ["GTEX-D23"]
    assert sum(n["slides"] for splits in report["tissues"].values() for n in splits.values()) == 46
    assert "46 slides of 24 donors, 276 tiles" in said and "donors in several tissues: 22 (brain and lung)" in said
    assert "slides without expression: 1: spare (no row in data/brain.csv)" in said
    assert "expression without slide: 2: GTEX-D03-0625.svs" in said and "GTEX-D23" in said


def test_coverage_is_of_the_checkpoints_genes_else_of_the_list_else_unknown(work, capsys):
    genes = read_expression("data/lung.csv").genes
    Path("genes.csv").write_text("\n".join(["Gene", *(f"rna_{gene}" for gene in genes[:30]), "rna_ENSG00000999999.1"]))
    for tissue in ("lung", "brain"):
        table = read_expression(f"data/{tissue}.csv")
        table.values, table.genes = table.values[:, :45], table.genes[:45]
        write_expression(table, Path(f"data/{tissue}.csv"))
    found = {}
    for name, words in {
        "checkpoint": "--checkpoint checkpoints/betavae_tissues",
        "list": "--genes genes.csv",
        "none": "",
    }.items():
        assert run(f"{TABLES} {words} --out {name}.csv") == 0
        found[name] = set(pd.read_csv(f"{name}.csv", dtype=str, keep_default_na=False)["coverage"])
    lacking = json.loads(Path("checkpoint.report.json").read_text())["genes"]
    assert lacking["present"] == 45 and len(lacking["missing"]) == 15
    assert "45 of the 60 genes of checkpoints/betavae_tissues (75.0%" in capsys.readouterr().out
    assert found == {"checkpoint": {"0.7500"}, "list": {f"{30 / 31:.4f}"}, "none": {""}}


def test_a_checkpoints_split_seed_is_used_and_a_config_names_the_data(work, capsys):
    assert run("cohort --config lung.json --split_seed 7 --checkpoint checkpoints/betavae_tissues --out c.csv") == 0
    assert "was trained under 99: that is used" in capsys.readouterr().err
    table = pd.read_csv("c.csv")
    assert list(table["split"]) == [split_of(donor, 99) for donor in table["donor"]] and set(table["tissue"]) == {
        "lung"
    }
    assert run("cohort --config lung.json --split_seed 7 --out c.csv") == 0
    table = pd.read_csv("c.csv")
    assert list(table["split"]) == [split_of(donor, 7) for donor in table["donor"]]


def test_refusals(work, capsys):
    for words, message in (
        (f"{TABLES} --out c.txt", "c.txt: the cohort is written as .csv"),
        ("cohort --table data/lung.csv --out c.csv", "--tiles: name it"),
        (f"{TABLES} --checkpoint lung.json --out c.csv", "not a readable checkpoint"),
        (f"{TABLES} tiles/lung --out c.csv", "3 folders for 2 tables"),
    ):
        assert run(words) == 2 and message in capsys.readouterr().err, words
    assert not Path("c.csv").exists()
