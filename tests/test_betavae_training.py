"""betaVAE_training.py: it learns, resumes exactly, stops cleanly, and refuses what it cannot use."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from betavae_cohort import write_cohort
from gan_toy import repeatable

import betaVAE_training
from common.checkpoint import load_checkpoint
from common.config import BetaVAESettings
from common.errors import run_command
from datasets.epochs import epoch_batches
from datasets.expression import read_expression, write_expression
from datasets.keys import split_of
from datasets.leaks import donor_digests, marks
from metrics.expression import pca_reconstruction, pearson, tissue_mean
from models.betavae import TrainedVAE


def train(config, *flags):
    return run_command(
        betaVAE_training.main, betaVAE_training.build_parser(), ["--config", str(config), *map(str, flags)]
    )


def log_of(folder):
    """The lines of a log, without times and memory."""
    return [repeatable(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and set(a) == set(b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    assert train(write_cohort(folder)) == 0
    return folder


def test_it_beats_the_tissue_mean_on_held_out_donors(trained):
    report = json.loads((trained / "run" / "metrics.json").read_text())
    test = report["test"]
    for group in ("all", "lung", "brain"):
        assert test[group]["vae"]["mse"] < 0.8 * test[group]["tissue_mean"]["mse"]
        assert test[group]["vae"]["pearson_median"] > 0
    assert report["n"]["test"]["profiles"] == 2 * report["n"]["test"]["donors"] == test["all"]["profiles"]
    assert {"pca_8", "pca_50"} <= set(test["all"])
    table = pd.read_csv(trained / "run" / "test_genes.csv")
    assert len(table) == 3 * 150 and {"gene", "group", "vae_mse", "vae_pearson", "tissue_mean_mae"} <= set(table)
    assert math.isclose(table[table.group == "all"].vae_mse.mean(), test["all"]["vae"]["mse"], rel_tol=1e-3)


def test_the_log_has_the_same_parts_for_train_and_val(trained):
    epochs = [line for line in log_of(trained / "run") if "epoch" in line]
    assert [e["epoch"] for e in epochs] == list(range(1, 61))
    for e in epochs:
        for split in ("train", "val"):
            total = e[f"{split}_reconstruction"] + 5e-4 * e[f"{split}_kl"]
            assert e[f"{split}_total"] == pytest.approx(total, rel=1e-5)
    best = load_checkpoint(trained / "run" / "best.pt", "betavae")[0]
    assert best["validation"]["total"] == min(e["val_total"] for e in epochs)


def test_scaler_and_latents_come_from_the_training_donors_alone(trained):
    state, _ = load_checkpoint(trained / "run" / "best.pt", "betavae")
    tables = [read_expression(trained / f"{t}.h5ad") for t in ("lung", "brain")]
    rows = [[split_of(d, 99) == "train" for d in t.obs["donor"]] for t in tables]
    values = np.concatenate([t.values[r] for t, r in zip(tables, rows, strict=True)])
    logged = np.log1p(values.astype(np.float64))
    assert np.allclose(state["scaler"]["mean"], logged.mean(0), atol=1e-5)
    assert np.allclose(state["scaler"]["std"], logged.std(0), atol=1e-5)
    train = [name for r, t in zip(rows, tables, strict=True) for name in t.obs.index[np.array(r)]]
    assert state["trained_on"] == marks(train)
    donors = [d for t in tables for d in t.obs["donor"]]
    assert state["trained_donors"] == donor_digests(d for d in donors if split_of(d, 99) == "train")
    vae = TrainedVAE.from_state(state)
    mu = vae.encode(torch.from_numpy(values))
    assert torch.allclose(vae.latent_mean, mu.mean(0), atol=1e-4) and state["latent"]["n"] == len(values)
    assert torch.allclose(vae.by_tissue["lung"]["mean"], mu[: sum(rows[0])].mean(0), atol=1e-4)


def test_typing_it_again_after_the_end_changes_nothing(trained, capsys):
    before = {p.name: p.read_bytes() for p in (trained / "run").iterdir() if p.suffix != ".jsonl"}
    assert train(trained / "vae.json") == 0
    assert "trained and measured already" in capsys.readouterr().out
    assert before == {p.name: p.read_bytes() for p in (trained / "run").iterdir() if p.suffix != ".jsonl"}


def test_a_run_cut_inside_an_epoch_ends_as_if_it_had_not_been(tmp_path):
    settings = {"n_donors": 30, "n_genes": 100, "batch_size": 8, "num_epochs": 4}
    whole, parts = write_cohort(tmp_path / "a", **settings), write_cohort(tmp_path / "b", **settings)
    assert train(whole) == 0
    for steps in (2, 7, 0):  # inside the first epoch, inside a later one, to the end
        assert train(parts, "--max_steps", steps) == 0
        assert (tmp_path / "b" / "run" / "best.pt").exists()
    a, b = (load_checkpoint(tmp_path / x / "run" / "last.pt")[0] for x in "ab")
    assert weights_equal(a["model"], b["model"]) and a["best"] == b["best"]
    assert log_of(tmp_path / "a" / "run") == log_of(tmp_path / "b" / "run")


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    settings = {"n_donors": 30, "n_genes": 100, "num_epochs": 6}
    whole, killed = write_cohort(tmp_path / "a", **settings), write_cohort(tmp_path / "b", **settings)
    assert train(whole) == 0
    assert train(killed, "--num_epochs", 4) == 0
    run = tmp_path / "b" / "run"
    shutil.copy(run / "last.pt", tmp_path / "old.pt")
    assert train(killed) == 0
    shutil.copy(tmp_path / "old.pt", run / "last.pt")  # as if the process had died after best.pt, before last.pt
    assert train(killed) == 0
    a, b = (load_checkpoint(tmp_path / x / "run" / "best.pt")[0] for x in "ab")
    assert a["epoch"] == b["epoch"] and weights_equal(a["model"], b["model"])
    assert log_of(tmp_path / "a" / "run") == log_of(run)


def test_in_bf16_it_learns_too_and_the_weights_stay_fp32(tmp_path, trained):
    assert train(write_cohort(tmp_path), "--precision", "bf16") == 0
    state, _ = load_checkpoint(tmp_path / "run" / "best.pt", "betavae")
    assert all(v.dtype != torch.bfloat16 for v in state["model"].values())
    fp32, _ = load_checkpoint(trained / "run" / "best.pt", "betavae")
    assert state["validation"]["total"] == pytest.approx(fp32["validation"]["total"], rel=0.05)
    assert state["validation"]["total"] != fp32["validation"]["total"]


def test_the_published_form_runs(tmp_path):
    published = {
        "transform": "ln_nonzero",
        "decoder_output": "tanh",
        "missing_genes": "zero",
        "lr_schedule": "warmup_cosine",
    }
    config = write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=1, **published)
    assert train(config) == 0
    state = load_checkpoint(tmp_path / "run" / "best.pt", "betavae")[0]
    assert state["scaler"]["transform"] == "ln_nonzero" and state["model_args"]["decoder_output"] == "tanh"


def test_the_published_schedule_swings():
    cfg = BetaVAESettings(lr=1.0, lr_schedule="warmup_cosine", warmup_batches=10, cosine_batches=4)
    rates = [betaVAE_training.learning_rate(s, cfg) for s in (0, 5, 10, 12, 14, 18)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0, 1])
    assert betaVAE_training.learning_rate(7, BetaVAESettings(lr=3.0)) == 3.0


@pytest.mark.parametrize("n", [1, 2, 8, 9, 17, 160])
def test_each_row_once_per_epoch_and_never_alone(n):
    batches = epoch_batches(n, 8, 99, 0)
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert n == 1 or min(map(len, batches)) > 1
    assert n < 8 or not torch.equal(batches[0], epoch_batches(n, 8, 99, 1)[0])


@pytest.mark.parametrize(
    ("settings", "flags", "words"),
    [
        ({"n_donors": 2}, [], "too few donors to split by split_seed 99: train"),
        ({"rna_features": 200}, [], "at least 80% of rna_features"),
        ({"transform": "log"}, [], "transform 'log': expected one of log1p, ln_nonzero"),
        ({"batch_size": 1}, [], "batch_size 1: a larger number"),
        ({"decoder_output": "relu"}, [], "decoder_output 'relu'"),
        ({"best_by": "kl"}, [], "best_by 'kl': expected one of total, reconstruction"),
        ({"encoder_sizes": []}, [], "encoder_sizes []: at least one size"),
        ({"device": "cuda:77"}, [], "a GPU was asked for"),
        ({"path_csv": ["nowhere.csv"]}, [], "nowhere.csv"),
        ({"micro_batch": 1}, [], "micro_batch 1: 0, or 2 or more, were expected"),
    ],
)
def test_what_it_refuses(tmp_path, capsys, settings, flags, words):
    config = write_cohort(tmp_path, n_genes=150, **({"n_donors": 30} | settings))
    assert train(config, *flags) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert words in err
    assert not (tmp_path / "run" / "last.pt").exists()


def test_other_settings_or_other_tables_in_the_same_folder_are_refused(tmp_path, capsys):
    config = write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=1)
    assert train(config) == 0
    assert train(config, "--seed", 5) == 2
    assert "seed (99 there, 5 now)" in capsys.readouterr().err
    write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=1, seed=1)
    config.write_text(config.read_text().replace('"seed": 1', '"seed": 99'))
    assert train(config) == 2
    assert "not the tables that the run" in capsys.readouterr().err
    assert train(config, "--restart") == 0
    assert len(list(tmp_path.glob("run.*"))) == 1


@pytest.mark.parametrize("change", ["donors", "genes", "values", "unit"])
def test_a_resume_names_what_differs_in_the_tables(tmp_path, capsys, change):
    config = write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=1)
    assert train(config, "--max_steps", 1) == 0
    for path in (tmp_path / "lung.h5ad", tmp_path / "brain.h5ad"):
        table = read_expression(path)
        if change == "donors":  # two donors of one split change places: counts and values stay as they are
            train_donors = [d for d in table.obs["donor"].unique() if split_of(d, 99) == "train"][:2]
            names = dict(zip(train_donors, train_donors[::-1], strict=True))
            swapped = [name.replace(name[:9], names.get(name[:9], name[:9])) for name in table.obs.index]
            table.obs = table.obs.assign(donor=[name[:9] for name in swapped])
            table.obs.index = pd.Index(swapped, dtype=object)
        elif change == "genes":  # the same sum per profile
            table.genes[0], table.genes[1] = table.genes[1], table.genes[0]
        elif change == "values":  # the same sum per profile
            table.values[:, [0, 1]] = table.values[:, [1, 0]]
        else:
            table.unit = "FPKM"
        write_expression(table, path)
    assert train(config) == 2
    words = {"donors": "samples and their order, donors;", "genes": "genes and their order;"}
    err = capsys.readouterr().err
    assert f"other {words.get(change, f'{change};')}" in err and "--restart" in err


def test_a_lost_best_model_names_the_remedy(tmp_path, capsys):
    config = write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=1)
    assert train(config) == 0
    (tmp_path / "run" / "best.pt").unlink()
    for flags in ((), ("--num_epochs", 2)):
        assert train(config, *flags) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert "best.pt, of epoch 1, is gone" in err and "--restart" in err
    assert train(config, "--restart") == 0


def test_help_is_the_manual():
    text = betaVAE_training.build_parser().format_help()
    for word in ("path_csv", "best.pt", "python betaVAE_training.py --config", "64/16/20"):
        assert word in text


# --- the numbers of metrics/expression.py ---


def test_pca_with_all_components_is_exact_on_its_own_rows():
    x = np.random.default_rng(0).standard_normal((12, 30)).astype(np.float32)
    full, one = pca_reconstruction(x, x, [11, 1])
    assert np.allclose(full, x, atol=1e-4)
    u, s, v = np.linalg.svd(x - x.mean(0))
    assert np.allclose(one, x.mean(0) + s[0] * np.outer(u[:, 0], v[0]), atol=1e-4)


def test_pearson_and_tissue_mean_of_known_numbers():
    x = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    assert np.allclose(pearson(x, x * [2, 1, -3] + 5), [1, np.nan, -1], equal_nan=True)
    means = tissue_mean(x, np.array(["a", "a", "b"]), np.array(["b", "a", "c"]))
    assert np.allclose(means, [[2, 1, 0], [0.5, 1, 1.5], [1, 1, 1]])
