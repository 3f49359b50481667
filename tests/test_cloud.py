"""How far a profile is from the training cloud: held-out donors near; another platform, unit or tissue far; by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from betavae_cohort import write_cohort

import betaVAE_training
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import run_command
from datasets.expression import ExpressionTable, read_expression
from models.betavae import TrainedVAE
from models.cloud import FAR_PERCENTILE, TrainingCloud, mahalanobis, nearest_cloud
from models.latents import fit_gaussian
from sources import profiles as profiles_module
from sources.profiles import Profiles

RUN = "run/best.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    words = ["--config", str(write_cohort(folder))]
    assert run_command(betaVAE_training.main, betaVAE_training.build_parser(), words) == 0
    return folder


def table_of(folder, split=None):
    profiles = Profiles(folder / RUN, read_expression(folder / "lung.h5ad"))
    chosen = [row for row in range(len(profiles.table)) if split in (None, profiles.split(row))]
    return profiles.table.rows(np.array(chosen))


def changed(table, values):
    obs = table.obs.copy()
    return ExpressionTable(np.asarray(values, np.float32), table.genes, obs, table.unit, table.source)


# ---- The formulas ----


def test_mahalanobis_is_that_of_the_whole_covariance():
    torch.manual_seed(0)
    mu, logvar = torch.randn(9, 20) * 3 + 1, torch.randn(9, 20)
    gaussian, new = fit_gaussian(mu, logvar, max_rank=4), torch.randn(5, 20)
    factor, residual = gaussian["factor"].double(), gaussian["residual"].double()
    off = new.double() - gaussian["mean"]
    whole = factor.T @ factor + torch.diag(residual**2)
    expected = (off * torch.linalg.solve(whole, off.T).T).sum(1).div(20).sqrt()
    assert torch.allclose(mahalanobis(new, gaussian), expected, rtol=1e-9)
    one = fit_gaussian(mu[:1], logvar[:1])  # a tissue of one donor has no directions
    assert torch.allclose(mahalanobis(mu[:1], one), torch.zeros(1, dtype=torch.float64), atol=1e-6)


def test_the_nearest_tissue_counts():
    torch.manual_seed(0)
    clouds = {
        t: fit_gaussian(torch.randn(30, 4) + at, torch.zeros(30, 4)) for t, at in (("lung", -9.0), ("brain", 9.0))
    }
    distance, nearest = nearest_cloud(torch.tensor([[-9.0] * 4, [9.0] * 4, [0.0] * 4]), clouds)
    assert nearest[:2] == ["lung", "brain"] and distance[2] > 5 * distance[:2].max()


def test_of_the_same_kind_as_many_lie_beyond_a_percentile_as_it_says():
    rng = np.random.default_rng(0)
    clouds = {"lung": {"mean": torch.zeros(1), "residual": torch.ones(1), "factor": torch.zeros(0, 1)}}
    beyond = []
    for _ in range(3000):  # few validation donors, and one new profile after them: latent distance |mu|
        drawn = torch.from_numpy(rng.lognormal(0.3, 0.4, 6))
        cloud = TrainingCloud(clouds, {"latent": drawn[:5], "misfit": torch.ones(5)})
        beyond.append(cloud.distances(drawn[5:, None], torch.ones(1)).percentiles["latent"][0])
    shares = [np.mean(np.array(beyond) > p) for p in (50, 90, 99)]
    assert np.allclose(shares, [0.5, 0.1, 0.01], atol=[0.03, 0.017, 0.006])


# ---- On a cohort ----


def test_held_out_donors_are_near_and_known_to_be_held_out(folder):
    vae = TrainedVAE.open(folder / RUN)[0]
    test = vae.distances(torch.from_numpy(table_of(folder, "test").values))
    assert len(test.far) > 5 and not test.far.any()
    assert 5 < np.median(test.percentile) < 99 and set(test.nearest) == {"lung"}
    train = vae.distances(torch.from_numpy(table_of(folder, "train").values))
    assert np.median(train.percentiles["misfit"]) < 20  # the weights know them: no measure of a new profile's distance


def platform(values):
    """Each gene shifted and stretched in its logarithm, as the demo's other platform."""
    rng = np.random.default_rng(5)
    genes = values.shape[1]
    return np.expm1(np.log1p(values) * rng.normal(0.92, 0.05, genes) + rng.normal(0, 0.6, genes)).clip(0)


def logged(values):
    return np.log2(values + 1)


def thousandfold(values):
    return values * 1000


def others_genes(values):
    return values[:, np.random.default_rng(0).permutation(values.shape[1])]


@pytest.mark.parametrize("change", [platform, logged, thousandfold, others_genes], ids=lambda f: f.__name__)
def test_another_platform_unit_or_order_of_genes_is_far(folder, change, capsys):
    test = table_of(folder, "test")
    profiles = Profiles(folder / RUN, changed(test, change(test.values)))
    distances = profiles.distances()
    assert distances.far.all(), distances.percentile
    capsys.readouterr()
    profiles.conditions()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{len(test)} of {len(test)} profiles beyond percentile" in error
    assert test.obs.index[0] in error and "--harmonise" in error


def test_a_missing_gene_is_no_misfit(folder):
    vae, test = TrainedVAE.open(folder / RUN)[0], table_of(folder, "test")
    values = torch.from_numpy(test.values.copy())
    values[:, ::10] = float("nan")
    assert not vae.distances(values).far.any()
    values[:, ::10] = 0
    assert vae.distances(values).far.all()


def test_a_report_is_json_and_names_what_is_far(folder):
    test = table_of(folder, "test")
    values = test.values.copy()
    values[2] = logged(values[2])
    profiles = Profiles(folder / RUN, changed(test, values))
    names = list(test.obs.index)
    report = json.loads(json.dumps(profiles.distances().report(names)))
    assert report["far"] == [names[2]] and report["far_beyond_percentile"] == FAR_PERCENTILE
    found = report["profiles"][names[2]]
    assert found["far"] and found["percentile"] == max(found["latent_percentile"], found["misfit_percentile"])
    one = profiles.distances([names[2]])
    assert one.summary([names[2]]).startswith("percentile 100.0 of ") and one.report([names[2]])["far"] == [names[2]]


def test_an_older_checkpoint_says_once_that_it_cannot_tell(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "old")
    state, _ = load_checkpoint(tmp_path / "old" / RUN, "betavae")
    del state["held_out_distances"]
    save_checkpoint(tmp_path / "old" / RUN, "betavae", state)
    profiles_module.say_that_distances_are_unknown.cache_clear()
    for _ in range(2):
        profiles = Profiles(tmp_path / "old" / RUN, read_expression(folder / "lung.h5ad"))
        assert profiles.distances() is None and len(profiles.conditions()) == len(profiles.table)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be told" in error


def test_too_few_validation_donors_are_no_record():
    for m, known in ((2, False), (3, True)):
        held_out = {kind: torch.arange(1.0, 1 + m) for kind in ("latent", "misfit")}
        assert (TrainingCloud.of({"by_tissue": {}, "held_out_distances": held_out}) is not None) == known
