"""The beta-VAE's parts: loss, scaler, network, latent Gaussian and the checkpoint that a stranger can use."""

import math

import pytest
import torch

from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import InputError
from models.betavae import BetaVAE, TrainedVAE, beta_vae_loss, finished_state
from models.expression_scaler import ExpressionScaler
from models.latents import draw_gaussian, fit_gaussian

GENES, LATENT = 12, 5


def made_state(seed=0, missing="mean", **model_args):
    torch.manual_seed(seed)
    values = torch.rand(30, GENES).mul(4).exp() - 1
    args = {
        "n_genes": GENES,
        "encoder_sizes": [9],
        "decoder_sizes": [9],
        "latent_dim": LATENT,
        "input_dropout": 0.5,
        "decoder_output": "linear",
    } | model_args
    model = BetaVAE(**args)
    scaler = ExpressionScaler.fit(values, missing=missing)
    for _ in range(20):  # so that the batch norms have seen the data
        model(scaler.transform(values))
    state = {
        "model_args": args,
        "model": dict(model.state_dict()),
        "genes": [f"ENSG{i:011d}.1" for i in range(GENES)],
        "unit": "TPM",
        "scaler": scaler.state(),
        "split_seed": 99,
        "min_gene_coverage": 0.8,
        "missing_genes": missing,
        "settings": {},
    }
    return finished_state(state, values, ["lung"] * 18 + ["brain"] * 12, values[:6]), values


def test_the_papers_network_has_303_million_parameters():
    with torch.device("meta"):
        model = BetaVAE(19198)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 303
    kinds = [type(layer).__name__ for layer in model.encoder][:4]
    assert kinds == ["Dropout", "Linear", "JointBatchNorm1d", "LeakyReLU"]
    assert model.encoder[3].negative_slope == 0.01


def test_the_loss_of_known_numbers():
    x, y = torch.zeros(2, 4), torch.full((2, 4), 3.0)
    mu, logvar = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
    loss = beta_vae_loss(x, y, mu, logvar, beta=0.1)
    assert loss["reconstruction"] == 9 and loss["kl"] == pytest.approx((0.5 + 2.0) / 2)
    assert loss["total"] == pytest.approx(9 + 0.1 * 1.25)
    # against torch's own divergence of two Gaussians
    mu, logvar = torch.randn(7, 3), torch.randn(7, 3)
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    p = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).sum(1).mean()
    assert torch.allclose(beta_vae_loss(x, y, mu, logvar, 1.0)["kl"], expected)


def test_under_bf16_autocast_the_outputs_the_loss_and_the_gradients_are_fp32_and_close():
    torch.manual_seed(0)
    model = BetaVAE(60, [40, 30], [30, 40], 20, 0.0)
    x, noise = torch.randn(64, 60), torch.randn(64, 20)
    found = {}
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(x, noise)
        assert all(part.dtype == torch.float32 for part in outputs)
        losses = beta_vae_loss(x, *outputs, beta=5e-4)
        losses["total"].backward()
        found[bf16] = losses["total"].item(), torch.cat([p.grad.flatten() for p in model.parameters()])
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-3) and found[True][0] != found[False][0]
    assert torch.cosine_similarity(found[True][1], found[False][1], 0) > 0.999


@pytest.mark.parametrize("transform", ["log1p", "ln_nonzero"])
def test_the_scaler_gives_z_scores_and_comes_back(transform):
    values = torch.rand(700, 6) * 100 + 1.5  # more than one block of rows
    values[:, 5] = 3.0  # a constant gene
    scaler = ExpressionScaler.fit(values, transform)
    z = scaler.transform(values)
    assert torch.allclose(z.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(z.std(0, correction=0)[:5], torch.ones(5), atol=1e-4) and z[:, 5].abs().max() < 1e-4
    assert torch.allclose(scaler.inverse(z), values, rtol=1e-4)
    assert scaler.inverse(torch.full((1, 6), -1e4)).min() >= 0
    assert torch.isfinite(scaler.inverse(torch.full((1, 6), 1e4))).all()


def test_log1p_is_monotone_and_the_published_logarithm_is_not():
    x = torch.tensor([[0.0], [0.001], [1.0], [5.0]])
    up = ExpressionScaler.fit(x, "log1p").transform(x)[:, 0]
    published = ExpressionScaler.fit(x, "ln_nonzero").transform(x)[:, 0]
    assert (up.diff() > 0).all() and not (published.diff() > 0).all()


def test_a_missing_gene_is_the_training_mean_or_the_published_zero():
    values = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    row = torch.tensor([[float("nan"), 10.0]])
    mean = ExpressionScaler.fit(values, missing="mean")
    zero = ExpressionScaler.fit(values, missing="zero")
    assert mean.transform(row)[0, 0] == 0
    assert torch.equal(zero.transform(row), mean.transform(torch.tensor([[0.0, 10.0]])))
    assert mean.transform(row)[0, 1] == zero.transform(row)[0, 1]


def test_tanh_stays_within_one_and_an_unknown_output_is_refused():
    assert BetaVAE(GENES, [8], [8], 3, 0.0, "tanh").eval().decode(torch.randn(9, 3) * 50).abs().max() <= 1
    with pytest.raises(InputError, match="decoder_output 'relu': expected one of linear, tanh"):
        BetaVAE(GENES, [8], [8], 3, 0.0, "relu")


def test_the_gaussian_has_the_moments_of_the_aggregate_posterior():
    torch.manual_seed(0)
    mu = torch.randn(200, 3) @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.1]]) + 5
    logvar = torch.full((200, 3), math.log(0.04))
    for rank in (64, 1):  # one direction kept: variances still right, a correlation is lost
        gaussian = fit_gaussian(mu, logvar, rank)
        draws = torch.stack([draw_gaussian(gaussian, torch.Generator().manual_seed(k)) for k in range(6000)])
        expected = torch.cov(mu.T) + 0.04 * torch.eye(3)
        assert torch.allclose(draws.mean(0), mu.mean(0), atol=0.1)
        assert torch.allclose(torch.cov(draws.T).diag(), expected.diag(), rtol=0.1)
        if rank == 64:
            assert torch.allclose(torch.cov(draws.T), expected, atol=0.2)
    one = fit_gaussian(mu[:1], logvar[:1])
    assert one["factor"].shape == (0, 3) and draw_gaussian(one, torch.Generator()).shape == (3,)


def test_a_checkpoint_is_enough_to_encode_a_stranger(tmp_path):
    state, values = made_state()
    save_checkpoint(tmp_path / "best.pt", "betavae", state)
    vae = TrainedVAE.from_state(load_checkpoint(tmp_path / "best.pt", "betavae")[0])
    mu = vae.encode(values)
    assert mu.shape == (30, LATENT) and not mu.requires_grad
    assert torch.equal(mu, vae.encode(values))  # evaluation mode: no dropout, no noise
    assert torch.allclose(vae.encode(values[:1]), mu[:1], atol=1e-5)  # no statistics of the batch
    assert torch.allclose(vae.latent_mean, mu.mean(0), atol=1e-5)
    assert torch.allclose(vae.latent_std, mu.std(0), atol=1e-5)
    assert vae.decode(mu).min() >= 0 and vae.decode(mu).shape == values.shape
    assert {t: g["n"] for t, g in vae.by_tissue.items()} == {"lung": 18, "brain": 12}
    assert torch.allclose(vae.by_tissue["brain"]["mean"], mu[18:].mean(0), atol=1e-5)
    assert vae.residual_std.shape == (GENES,) and vae.residual_std.min() > 0
    missing = values.clone()
    missing[:, 3] = float("nan")
    assert torch.isfinite(vae.encode(missing)).all()


def test_weights_are_shared_not_copied():
    state, _ = made_state()
    vae = TrainedVAE.from_state(state)
    assert vae.model.z_mu.weight.data_ptr() == state["model"]["z_mu.weight"].data_ptr()


def test_a_file_or_a_run_folder_is_opened_and_a_wrong_one_is_named(tmp_path):
    state, values = made_state()
    digest = save_checkpoint(tmp_path / "run" / "best.pt", "betavae", state)
    for path in (tmp_path / "run", tmp_path / "run" / "best.pt"):
        vae, found = TrainedVAE.open(path)
        assert found == digest and torch.equal(vae.encode(values), TrainedVAE.from_state(state).encode(values))
    other = state["model_args"] | {"encoder_sizes": [8]}
    save_checkpoint(tmp_path / "run" / "best.pt", "betavae", state | {"model_args": other})
    with pytest.raises(InputError, match=r"best\.pt: holds another architecture .*\((size mismatch for|Missing|Unexp)"):
        TrainedVAE.open(tmp_path / "run")
    less = {k: v for k, v in state["model"].items() if k != "z_mu.bias"}
    save_checkpoint(tmp_path / "less.pt", "betavae", state | {"model": less})
    with pytest.raises(InputError, match=r"less\.pt: .*Missing key\(s\) in state_dict: \"z_mu\.bias\""):
        TrainedVAE.open(tmp_path / "less.pt")


def test_a_checkpoint_of_another_architecture_is_refused():
    state, values = made_state()
    other = state | {"model_args": state["model_args"] | {"encoder_sizes": [8]}}
    with pytest.raises(InputError, match="another architecture than it states"):
        TrainedVAE.from_state(other)
    with pytest.raises(InputError, match="names 3 genes"):
        TrainedVAE.from_state(state | {"genes": ["a", "b", "c"]})
    with pytest.raises(InputError, match="profiles of 12 genes were expected, found"):
        TrainedVAE.from_state(state).encode(values[:, :5])
