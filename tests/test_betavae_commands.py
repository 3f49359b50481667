"""betaVAE_interpolation.py and betaVAE_sample.py on a trained model: known shifts, and profiles that look real."""

import json
import shutil

import numpy as np
import pytest
import torch
from betavae_cohort import MODULE, write_cohort

import betaVAE_interpolation
import betaVAE_sample
import betaVAE_training
from common.checkpoint import load_checkpoint
from common.errors import InputError, run_command
from datasets.expression import read_cohort_tables, read_expression, write_expression
from datasets.keys import split_of
from metrics.profiles import GroupClassifier, compare_profiles, nearest_distance, real_or_synthetic
from models.betavae import TrainedVAE
from sources.profiles import Profiles


def call(command, *flags):
    return run_command(command.main, command.build_parser(), [str(f) for f in flags])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    assert call(betaVAE_training, "--config", write_cohort(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def shifts(folder):
    paper = ["--seed", 99, "--config", folder / "vae.json", "--log", 0, "--parallel", 0]  # as printed in the paper
    assert call(betaVAE_interpolation, *paper) == 0
    assert call(betaVAE_interpolation, *paper, "--type", "sex") == 0
    return folder / "run" / "shifts"


def vae_of(folder):
    return TrainedVAE.from_state(load_checkpoint(folder / "run" / "best.pt", "betavae")[0])


# --- interpolation ---


def test_the_shift_is_the_difference_of_centroids_of_training_donors(folder, shifts):
    vae, settings = vae_of(folder), betaVAE_training.load_config(betaVAE_training.BetaVAESettings, folder / "vae.json")
    table = read_cohort_tables(settings)
    mu = vae.encode(torch.from_numpy(table.values)).numpy()
    train = (table.obs["split"] == "train").to_numpy()
    mean = {t: mu[train & (table.obs["tissue"] == t).to_numpy()].mean(0) for t in ("lung", "brain")}
    with np.load(shifts / "shift_lung_to_brain.npz", allow_pickle=False) as there:
        assert np.allclose(there["shift"], mean["brain"] - mean["lung"], atol=1e-4)
        assert np.allclose(there["mean_from"], mean["lung"], atol=1e-4)
        assert (str(there["from"]), str(there["to"])) == ("lung", "brain")
        assert int(there["n_from"]) == int((train & (table.obs["tissue"] == "lung").to_numpy()).sum())
        forth = there["shift"]
    with np.load(shifts / "shift_brain_to_lung.npz", allow_pickle=False) as there:
        assert np.allclose(there["shift"], -forth, atol=1e-6)


def test_moved_profiles_are_called_the_other_tissue_and_only_its_genes_move(folder, shifts):
    report = json.loads((shifts / "metrics.json").read_text())
    for pair in report["pairs"]:
        assert pair["accuracy_on_real"]["share"] == 1 and pair["before_called_to"]["share"] == 0
        assert pair["after_called_to"]["share"] == 1 and pair["n_held_out"] > 5
    moved = read_expression(shifts / "moved_lung_to_brain.h5ad")
    assert list(moved.obs["moved_from"].unique()) == ["lung"] and moved.values.min() >= 0
    lung, brain = (np.log1p(read_expression(folder / f"{t}.h5ad").values).mean(0) for t in ("lung", "brain"))
    away = np.abs(np.log1p(moved.values).mean(0) - brain)
    tissue = slice(4 * MODULE, 5 * MODULE)
    assert away[tissue].mean() < 0.25 * np.abs(lung - brain)[tissue].mean()
    along = read_expression(shifts / "profiles_lung_to_brain.h5ad")
    level = np.log1p(along.values)[:, tissue].mean(1)
    assert len(along) == 5 and (np.diff(level) < 0).all()  # the lung's genes go down along alpha


def test_sexes_come_from_the_phenotype_file(shifts):
    report = json.loads((shifts / "sex" / "metrics.json").read_text())
    assert {(p["from"], p["to"]) for p in report["pairs"]} == {("male", "female"), ("female", "male")}
    for pair in report["pairs"]:
        assert pair["after_called_to"]["share"] > pair["before_called_to"]["share"]


def test_one_pair_as_csv(folder, tmp_path):
    flags = ["--config", folder / "vae.json", "--from", "Lung", "--to", "brain", "--format", "csv", "--out", tmp_path]
    assert call(betaVAE_interpolation, *flags, "--alphas", 0, 2) == 0
    assert sorted(p.name for p in tmp_path.glob("*.csv")) == [
        "calls.csv",
        "moved_lung_to_brain.csv",
        "profiles_lung_to_brain.csv",
    ]
    assert len(read_expression(tmp_path / "profiles_lung_to_brain.csv")) == 2
    assert (tmp_path / "calls.csv").read_text().splitlines()[0] == "from,to,alpha,count,n,share,low,high"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--from", "lungs"], "--from lungs: no such tissue in the tables; there are lung, brain; nearest: lung"),
        (["--from", "lung", "--to", "lung"], "a shift needs two different groups"),
        (["--type", "sex", "--tissue", "liver"], "--tissue liver: not in"),
        (["--type", "sex", "--phenotypes", "none.txt"], "none.txt"),
        (["--vae_checkpoint", "nowhere"], "nowhere: no such checkpoint"),
        (["--parallel", "1"], "several processes are not supported yet; use --parallel 0"),
    ],
)
def test_what_interpolation_refuses(folder, tmp_path, capsys, flags, words):
    assert call(betaVAE_interpolation, "--config", folder / "vae.json", "--out", tmp_path / "out", *flags) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_table_of_other_genes_than_the_models_is_refused(folder, tmp_path, capsys):
    config = write_cohort(tmp_path, n_genes=100, save_dir=str(folder / "run"))
    for command in (betaVAE_interpolation, betaVAE_sample):
        out = tmp_path / "x.h5ad" if command is betaVAE_sample else tmp_path / "x"
        assert call(command, "--config", config, "--out", out) == 2
        assert "has 100 of the 150 expected genes (66.7%)" in capsys.readouterr().err


def test_counts_are_refused_by_a_model_of_tpm(folder, tmp_path, capsys):
    config = write_cohort(tmp_path, save_dir=str(folder / "run"))
    for tissue in ("lung", "brain"):
        table = read_expression(tmp_path / f"{tissue}.h5ad")
        table.unit = "counts"
        write_expression(table, tmp_path / f"{tissue}.h5ad")
    for command in (betaVAE_interpolation, betaVAE_sample):
        out = tmp_path / "x.h5ad" if command is betaVAE_sample else tmp_path / "x"
        assert call(command, "--config", config, "--out", out) == 2
        assert "is in counts, TPM was expected" in capsys.readouterr().err
    with pytest.raises(InputError, match="is in counts, TPM was expected"):
        Profiles(folder / "run", read_expression(tmp_path / "lung.h5ad"))


# --- sampling ---


def test_draws_from_the_posterior_look_like_their_tissue(folder):
    paper = ["--seed", 99, "--config", folder / "vae.json", "--log", 0, "--parallel", 0]
    assert call(betaVAE_sample, *paper) == 0
    table = read_expression(folder / "run" / "samples.h5ad")
    assert len(table) == 64 and table.values.min() >= 0 and set(table.obs["tissue"]) == {"lung", "brain"}
    level = np.log1p(table.values[:, 4 * MODULE : 5 * MODULE]).mean(1)
    lung = (table.obs["tissue"] == "lung").to_numpy()
    assert level[lung].mean() > level[~lung].mean() + 1
    report = json.loads((folder / "run" / "samples.metrics.json").read_text())
    assert (report["n"], report["seed"], report["source"]) == (64, 99, "posterior")
    written = report["as_written"]
    splits = {s: sum(split_of(f"GTEX-{i:04d}", 99) == s for i in range(60)) for s in ("train", "test")}
    assert report["held_out_split"] == "test"
    assert (written["n"]["train"], written["n"]["held_out"]) == (2 * splits["train"], 2 * splits["test"])
    assert written["means"]["r"] > 0.95 and written["spreads"]["r"] > 0.8
    assert 0.7 < written["spreads"]["median_ratio"] < 1.3
    assert report["without_noise"]["spreads"]["median_ratio"] < written["spreads"]["median_ratio"] - 0.1
    assert written["auc"]["low"] < 0.5 < written["auc"]["high"]  # of 16 test profiles: not told apart
    assert written["nearest"]["synthetic_to_train"] > 0.8 * written["nearest"]["held_out_to_train"]


def test_sample_k_depends_on_seed_and_k_alone(folder, tmp_path):
    flags = ["--config", folder / "vae.json", "--tissue", "lung", "--no_check"]
    for name, n, seed in (("a", 12, 1), ("b", 5, 1), ("c", 5, 2)):
        out = tmp_path / f"{name}.h5ad"
        assert call(betaVAE_sample, *flags, "--num_samples", n, "--seed", seed, "--out", out) == 0
    a, b, c = (read_expression(tmp_path / f"{n}.h5ad").values for n in "abc")
    assert np.allclose(a[:5], b, rtol=1e-4) and not np.allclose(b, c, rtol=0.1)


def test_a_shifted_draw_has_the_other_tissues_genes(folder, shifts, tmp_path):
    flags = ["--config", folder / "vae.json", "--shift", shifts / "shift_lung_to_brain.npz", "--num_samples", 30]
    tissue = slice(4 * MODULE, 5 * MODULE)
    level = []
    for alpha in (0, 0.5, 1):
        out = tmp_path / f"{alpha}.csv"
        assert call(betaVAE_sample, *flags, "--alpha", alpha, "--out", out) == 0
        level.append(np.log1p(read_expression(out).values[:, tissue]).mean())
    assert level[0] > level[1] + 0.5 > level[2] + 1
    assert json.loads((tmp_path / "1.metrics.json").read_text())["as_written"]["means"]["rms_difference"] < 0.4
    sex = ["--shift", shifts / "sex" / "shift_male_to_female.npz", "--no_check", "--out", tmp_path / "s.h5ad"]
    assert call(betaVAE_sample, "--config", folder / "vae.json", *sex) == 0


def test_no_table_is_needed_to_sample(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    config = {"path_csv": ["gone.csv"], "save_dir": str(tmp_path / "run"), "device": "cpu"}
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert call(betaVAE_sample, "--config", tmp_path / "c.json", "--source", "prior", "--no_check") == 0
    assert set(read_expression(tmp_path / "run" / "samples.h5ad").obs["tissue"]) == {"prior"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tissue", "lun"], "--tissue lun: the model was trained on brain, lung; nearest: lung"),
        (["--source", "prior", "--tissue", "lung"], "the prior knows no tissue"),
        (["--source", "shift"], "--source shift and --shift FILE belong together"),
        (["--shift", "none.npz"], "none.npz: no such file; make it with betaVAE_interpolation.py"),
        (["--out", "x.txt"], "ending in .h5ad or .csv"),
        (["--num_samples", "0"], "at least 1"),
        (["--save_dir", "nowhere"], "nowhere: no such checkpoint"),
        (["--parallel", "1"], "several processes are not supported yet; use --parallel 0"),
    ],
)
def test_what_sampling_refuses(folder, capsys, flags, words):
    assert call(betaVAE_sample, "--config", folder / "vae.json", *flags) == 2
    assert words in capsys.readouterr().err


def test_a_shift_of_another_model_or_a_damaged_one_is_refused(folder, shifts, tmp_path, capsys):
    whole = shifts / "shift_lung_to_brain.npz"
    with np.load(whole, allow_pickle=False) as there:
        np.savez(tmp_path / "other.npz", **(dict(there) | {"vae_digest": "0" * 64}))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "less.npz", shift=np.zeros(8))
    for name, words in (
        ("other", "is of model 000000000000"),
        ("cut", "not a shift of betaVAE_interpolation.py"),
        ("text", "not a shift of betaVAE_interpolation.py"),
        ("less", "not a shift of betaVAE_interpolation.py"),
    ):
        assert call(betaVAE_sample, "--config", folder / "vae.json", "--shift", tmp_path / f"{name}.npz") == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", [betaVAE_interpolation, betaVAE_sample])
def test_help_is_the_manual(command):
    text = command.build_parser().format_help()
    assert f"python {command.__name__}.py --config" in text and "Writes" in text and "Reads" in text


# --- the numbers of metrics/profiles.py ---


def test_nearest_distance_of_known_numbers():
    assert np.allclose(nearest_distance(np.array([[0.0, 0], [3, 4]]), np.array([[3.0, 4], [6, 8]])), [5 / 2**0.5, 0])


def test_the_nearest_other_row_is_never_the_row_itself():
    x = np.random.default_rng(0).standard_normal((250, 7)).astype(np.float32)
    away = np.sqrt(((x[:200, None].astype(np.float64) - x) ** 2).mean(2))
    away[np.arange(200), np.arange(200)] = np.inf
    assert np.allclose(nearest_distance(x[:200], x, same_rows=True), away.min(1), atol=1e-6)
    report = compare_profiles(x, x, x[:3], np.arange(3), np.zeros(7), np.ones(7), seed=0)
    assert report["nearest"]["train_to_train"] == pytest.approx(np.median(away.min(1)))
    assert report["nearest"]["synthetic_to_train"] == pytest.approx(0, abs=1e-6)


def test_copies_and_strangers_are_told_apart():
    rng = np.random.default_rng(0)
    train, held, same, other = (rng.standard_normal((60, 20)) + s for s in (0, 0, 0, 2))
    donors = np.arange(60)
    scale = np.zeros(20), np.ones(20)
    copies = compare_profiles(train + 0.01, train, held, donors, *scale, seed=0)
    assert copies["nearest"]["synthetic_to_train"] < 0.1 * copies["nearest"]["held_out_to_train"]
    assert 0.3 < real_or_synthetic(held, donors, same, 0)["value"] < 0.7
    assert real_or_synthetic(held, donors, other, 0)["value"] > 0.99
    assert real_or_synthetic(held[:4], donors[:4], other, 0) is None
    groups = np.repeat(["a", "b"], 60)
    assert (GroupClassifier(np.concatenate([train, other]), groups).call(other) == "b").all()
