"""The published code's checkpoints in our commands: what the file is, it says itself."""

import json
from pathlib import Path

import gan_toy
import numpy as np
import published_files as published
import pytest
import torch
from torch import nn

import betaVAE_interpolation
import betaVAE_sample
import evaluate_conditioning
import fid
import generate_tissue_images
import histopathology_gan
import prepare_data
from common.checkpoint import load_checkpoint
from common.errors import InputError
from datasets.expression import read_cohort_tables, read_expression, write_expression
from datasets.image_folder import read_image, read_image_folder
from datasets.leaks import TrainedOn
from models.betavae import BetaVAE
from models.conditioning import published_infuse
from models.dcgan import DCGANDiscriminator, DCGANGenerator
from models.networks import build_generator
from models.published import open_published
from sources.gan import open_gan
from sources.vae import Fit, open_vae

OLD = {"_use_new_zipfile_serialization": False}
PATIENT, OTHER = "GTEX-D03-0625.svs", "GTEX-D00-0625.svs"
TABLES = "--fit_scaler data/lung.csv data/brain.csv"
FIT = Fit(("data/lung.csv", "data/brain.csv"))


def generator(seed=1, dims=gan_toy.LATENT, side=gan_toy.SIDE, channels=4):
    return published.trained(DCGANGenerator(dims, side, channels), seed)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The toy cohort with published files: vae.pt, other.pt, gan.model, rna-gan.model (with the VAE of vae.pt)."""
    torch.set_num_threads(1)
    folder = gan_toy.make_cohort(tmp_path_factory.mktemp("cohort"))
    vae = published.save_vae(folder / "vae.pt")
    published.save_vae(folder / "other.pt", seed=5)
    published.save_gan(folder / "gan.model", generator())
    published.save_gan(folder / "rna-gan.model", generator(2), vae)
    return folder


cohort = gan_toy.cohort


def generate(words, checkpoint="rna-gan.model"):
    return gan_toy.run(generate_tissue_images, f"--checkpoint {checkpoint} --config lung.json {words}")


def pixels(folder):
    return np.stack([read_image(path) for path in read_image_folder(folder)]).astype(int)


def read(path):
    return json.loads(Path(path).read_text())


# ---- The weights ----


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "old"])
@pytest.mark.parametrize(("encoder", "decoder"), [([24, 18, 12], [18, 24]), ([7], [5]), ([9, 6], [5, 8, 3])])
def test_the_beta_vae_gives_what_the_published_network_gives(tmp_path, how, encoder, decoder):
    theirs = published.save_vae(tmp_path / "a", vae=published.trained(published.betaVAE(30, encoder, decoder)), **how)
    file = open_published(tmp_path / "a")
    args, names = file.betavae()
    assert args["n_genes"] == 30 and args["encoder_sizes"] == encoder and args["decoder_sizes"] == decoder
    ours = BetaVAE(**args)
    ours.load_state_dict(file.weights(names))
    x = torch.randn(6, 30)
    with torch.no_grad():
        expected, mu, logvar = theirs(x)
        found = ours.eval().encode(x)
        assert torch.allclose(found[0], mu, atol=1e-6) and torch.allclose(found[1], logvar, atol=1e-6)
        assert torch.allclose(ours.decode(mu), expected, atol=1e-6)
    assert expected.std() > 0.05 and expected.abs().max() <= 1


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "old"])
@pytest.mark.parametrize(("dims", "side", "channels"), [(12, 16, 4), (5, 32, 3), (20, 64, 2)])
def test_sizes_are_recognised_and_tiles_are_the_same(tmp_path, how, dims, side, channels):
    theirs = generator(3, dims, side, channels)
    published.save_gan(tmp_path / "a.model", theirs, **how)
    gan = open_gan(tmp_path / "a.model")
    assert gan.state["img_size"] == side and gan.state["generator_args"]["encoding_dims"] == dims
    noise = torch.randn(5, dims)
    with torch.no_grad():
        assert torch.allclose(gan.generator(noise), theirs.eval()(noise), atol=1e-5)


def test_torchgans_own_trainer_saves_what_is_read(tmp_path, monkeypatch):
    """Its networks, its losses, its save_model: the same noise gives the same tiles and scores, eval and train mode."""
    theirs = pytest.importorskip("torchgan.models", reason="pip install --no-deps torchgan==0.1.0 (make test does)")
    from torchgan.losses import WassersteinDiscriminatorLoss, WassersteinGeneratorLoss, WassersteinGradientPenalty
    from torchgan.trainer import Trainer

    monkeypatch.chdir(tmp_path)
    adam = {"name": torch.optim.Adam, "args": {"lr": 1e-4, "betas": (0.5, 0.999)}}
    shape = {"step_channels": 4, "nonlinearity": nn.LeakyReLU(0.2)}
    networks = {
        "generator": {
            "name": theirs.DCGANGenerator,
            "args": shape | {"encoding_dims": 12, "out_channels": 3, "out_size": 32, "last_nonlinearity": nn.Tanh()},
            "optimizer": adam,
        },
        "discriminator": {
            "name": theirs.DCGANDiscriminator,
            "args": shape | {"in_size": 32, "in_channels": 3, "last_nonlinearity": nn.LeakyReLU(0.2)},
            "optimizer": adam,
        },
    }
    losses = [
        WassersteinGeneratorLoss(),
        WassersteinDiscriminatorLoss(clip=(-0.01, 0.01)),
        WassersteinGradientPenalty(),
    ]
    trainer = Trainer(
        networks,
        losses,
        device=torch.device("cpu"),
        checkpoints="./model/gan",
        sample_size=4,
        epochs=1,
        recon="./images",
    )
    published.trained(trainer.generator, 1), published.trained(trainer.discriminator, 2)
    trainer.logger.run_end_epoch = lambda *_: None  # its picture grid asks for an argument that torchvision has no more
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    trainer(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(8)), batch_size=4))
    path = next(tmp_path.glob("model/*.model"))
    file = open_published(path)
    state = file.gan()
    assert not state["conditional"] and state["epoch"] == 1
    assert "WassersteinGradientPenalty" in state["published"]["loss_objects"]
    critic = DCGANDiscriminator(32, 4, norm="batch", output="leaky")
    critic.load_state_dict(file.file.tensors(file.file.value["discriminator"]))
    noise = torch.randn(6, 12)
    for mode in (False, True):
        ours = build_generator(state["generator_args"])
        ours.load_state_dict(state["generator"])
        with torch.no_grad():
            tiles = trainer.generator.train(mode)(noise)
            assert torch.allclose(ours.train(mode)(noise), tiles, atol=1e-5)
            assert torch.allclose(critic.train(mode)(tiles), trainer.discriminator.train(mode)(tiles), atol=1e-5)
        assert tiles.std() > 0.05


def test_weights_saved_under_data_parallel_are_the_same(tmp_path):
    theirs = generator()
    published.save_gan(tmp_path / "a.model", nn.DataParallel(theirs))
    noise = torch.randn(3, gan_toy.LATENT)
    with torch.no_grad():
        assert torch.allclose(open_gan(tmp_path / "a.model").generator(noise), theirs.eval()(noise), atol=1e-5)


def test_other_networks_are_refused_by_what_differs(tmp_path):
    def refused(state, message, reader=lambda p: open_gan(p)):
        torch.save(state, tmp_path / "a.model")
        with pytest.raises(InputError, match=message):
            reader(tmp_path / "a.model")

    good = generator().state_dict()
    norm = {"model.0.1.weight", "model.0.1.bias", "model.0.1.running_mean", "model.0.1.running_var"}
    refused({"generator": {k: v for k, v in good.items() if k not in norm}}, r"model.0.1.weight has shape None")
    refused({"generator": {"conv.weight": torch.ones(3)}}, "none of torchgan's DCGANGenerator")
    refused({"generator": good | {"extra": torch.ones(3)}}, r"extra has shape \(3,\), None was expected")
    refused({"generator": good | {"model.1.0.weight": torch.ones(32, 8, 4, 4)}}, r"model.1.0.weight has shape")
    refused({"generator": good | {"model.0.0.weight": "text"}}, "none of torchgan's DCGANGenerator")
    refused({"generator": good | {"model.2.0.bias": torch.tensor([0, 1, float("nan")])}}, "holds NaN or infinity")
    weights = published.trained(published.betaVAE()).state_dict()
    refused(weights, "holds a beta-VAE of the published code, a GAN was expected; name it with --vae_checkpoint")
    refused({k: v for k, v in weights.items() if "z_mu" not in k}, "z_mu.weight has shape None", open_vae)
    refused({"generator": good}, "holds a GAN of the published code, a beta-VAE was expected", open_vae)
    refused({"a": torch.ones(2)}, "not a checkpoint of this toolkit")
    refused({"kind": "gan", "digest": "x", "state": {}}, "content differs from its digest")


# ---- What --fit_scaler makes ----


def test_a_scaler_is_made_of_the_training_rows_and_says_so(cohort, capsys):
    with pytest.raises(InputError, match=r"vae.pt: is the published code's beta-VAE: weights only.*--fit_scaler TABLE"):
        open_vae("vae.pt")
    vae, digest = open_vae("vae.pt", fit=FIT)
    said = capsys.readouterr()
    assert "60 genes, scaler (ln_nonzero) and latent statistics of" in said.out and "no better" in said.err
    from common.config import DataSettings

    table = read_cohort_tables(DataSettings(path_csv=list(FIT.tables)))
    train = torch.from_numpy(table.values[(table.obs["split"] == "train").to_numpy()])
    logs = torch.where(train > 0, train, torch.ones(())).log()
    assert vae.genes == table.genes and vae.unit == "TPM" and 5 < len(train) < len(table)
    assert torch.allclose(vae.scaler.mean, logs.mean(0), atol=1e-5)
    assert torch.allclose(vae.scaler.std, logs.std(0, unbiased=False), atol=1e-5)
    theirs = published.trained(published.betaVAE(), gain=3)
    with torch.no_grad():
        mu = theirs((logs - logs.mean(0)) / logs.std(0, unbiased=False))[1]
    assert torch.allclose(vae.latent_mean, mu.mean(0), atol=1e-4)
    assert torch.allclose(vae.latent_std, mu.std(0), atol=1e-4)
    origin = vae.state["published"]
    assert origin["fit_scaler"] == ["lung.csv", "brain.csv"] and origin["rows"].startswith(
        f"{len(train)} of split train"
    )
    assert digest == origin["digest"] == open_vae("vae.pt", fit=FIT)[1]
    assert digest != open_vae("vae.pt", fit=Fit(("data/lung.csv",)))[1]
    assert digest != open_vae("other.pt", fit=FIT)[1]


def test_tables_that_do_not_fit_are_refused(cohort):
    table = read_expression("data/lung.csv")
    table.values, table.genes = table.values[:, :-1], table.genes[:-1]
    write_expression(table, "few.csv")
    with pytest.raises(InputError, match=r"--fit_scaler few.csv: 59 genes, vae.pt takes 60"):
        open_vae("vae.pt", fit=Fit(("few.csv",)))
    write_expression(read_expression("data/lung.csv").rows([0]), "one.csv")
    with pytest.raises(InputError, match=r"rows of split train and .* of val, at least 2 and 1 were expected"):
        open_vae("vae.pt", fit=Fit(("one.csv",)))


def test_a_vae_that_reconstructs_is_not_warned_of(cohort, capsys):
    """Weights trained on the tables' z-scores; with the genes in another order they fit no more."""
    vae = published.betaVAE(encoder=[32, 12], decoder=[32])
    table = read_expression("data/lung.csv")
    rng = np.random.default_rng(0)
    rows = 3 + rng.normal(size=(200, 2)) @ np.kron(np.eye(2), rng.choice([-0.9, 0.9], 30))  # thirty genes to a factor
    table.values = np.exp(rows[: len(table)]).astype(np.float32)
    write_expression(table, "made.csv")
    logs = torch.from_numpy(rows).float()
    z = (logs - logs.mean(0)) / logs.std(0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (vae(z)[0] - z).square().mean().backward()
        optimizer.step()
    published.save_vae("good.pt", vae=vae.eval())
    assert open_vae("good.pt", fit=Fit(("made.csv",)))[0].state["published"]["held_out_error"] < 0.6
    assert "no better" not in capsys.readouterr().err
    order = np.random.default_rng(1).permutation(60)
    table.values = table.values[:, order]
    write_expression(table, "mixed.csv")
    open_vae("good.pt", fit=Fit(("mixed.csv",)))
    assert "another order, unit or platform" in capsys.readouterr().err


def test_our_own_vae_needs_none(cohort, capsys):
    own = open_vae("checkpoints/betavae_tissues")[1]
    assert open_vae("checkpoints/betavae_tissues", fit=FIT)[1] == own
    assert "has its own scaler: --fit_scaler data/lung.csv, data/brain.csv is not used" in capsys.readouterr().err


# ---- The commands ----


def test_tiles_of_a_published_gan(cohort, capsys):
    assert generate("--sample_size 8 --out g", "gan.model") == 0
    err = capsys.readouterr().err
    assert err.count("a GAN of the published code, without expression") == 1
    about = read("g/manifest.json")["made_from"]
    gan = open_gan("gan.model")
    assert about["kind"] == "gan" and about["digest"] == gan.digest and about["epoch"] == 12
    assert about["published"]["loss_objects"] == ["WassersteinGeneratorLoss"] and about["label"] == "published GAN gan"
    assert gan.generator.rule.noise == "normal" and pixels("g").shape == (8, 16, 16, 3)


def test_tiles_of_a_published_rna_gan_cannot_depend_on_the_profile_and_it_is_said_once(cohort, capsys):
    words = f"--sample_size 16 --vae_checkpoint vae.pt {TABLES}"
    for patient, out in ((PATIENT, "a"), (OTHER, "b")):
        assert generate(f"{words} --patient1 {patient} --out {out}") == 0
        err = capsys.readouterr().err
        assert err.count("of one profile z cancels exactly, so these tiles cannot depend on the profile") == 1
    assert abs(pixels("a") - pixels("b")).max() <= 1 and pixels("a").std() > 5
    assert generate(f"--sample_size 16 {TABLES} --patient1 {PATIENT} --out c") == 0  # its file holds its beta-VAE
    inside, about = (read(f"{folder}/manifest.json")["made_from"] for folder in "ca")
    assert inside["vae_published"] == about["vae_published"] and (pixels("c") == pixels("a")).all()
    assert about["kind"] == "rna-gan" and about["vae_published"]["fit_scaler"] == ["lung.csv", "brain.csv"]
    assert about["digest"] == open_gan("rna-gan.model").digest and about["vae_published"]["transform"] == "ln_nonzero"
    # Noise U(-0.3, 0.3) + z, standardised over the chunk, through torchgan's network in eval mode.
    gan = open_gan("rna-gan.model")
    profiles = gan.profiles("vae.pt", read_expression("data/lung.csv"), FIT)
    c = profiles.condition(PATIENT)
    noise = torch.rand(16, gan_toy.LATENT) * 0.6 - 0.3
    theirs = generator(2)
    file = open_published("rna-gan.model").file
    theirs.load_state_dict(file.tensors(file.value["generator"]))
    with torch.no_grad():
        expected = theirs.eval()(published_infuse(noise, c))
        assert torch.allclose(gan.generator(noise, c.expand(16, -1)), expected, atol=1e-5)
    z = profiles.vae.encode(torch.from_numpy(profiles.table.values))[profiles.table.find(PATIENT)]
    assert gan.generator.rule.noise == "uniform" and torch.allclose(c, z, atol=1e-5)


def test_what_is_missing_or_another_vae_is_named(cohort, capsys):
    for words, message in (
        (f"--patient1 {PATIENT}", "rna-gan.model: is the published code's beta-VAE: weights only."),
        (
            f"--patient1 {PATIENT} --vae_checkpoint vae.pt",
            "name the tables that it was trained with, --fit_scaler TABLE",
        ),
        (f"--patient1 {PATIENT} --vae_checkpoint other.pt {TABLES}", "other.pt: is another VAE"),
        (f"--patient1 {PATIENT} --vae_checkpoint checkpoints/betavae_tissues", "is another VAE"),
        (f"--patient1 {PATIENT} --vae_checkpoint gan.model {TABLES}", "a beta-VAE was expected"),
    ):
        assert generate(words) == 2
        err = capsys.readouterr().err
        assert message in err.splitlines()[-1] and ": error: " in err.splitlines()[-1]
    torch.save(generator().state_dict(), "bare.model")
    assert generate(f"--vae --patient1 {PATIENT}", "bare.model") == 2
    assert "does not name its beta-VAE's file; name it with --vae_checkpoint" in capsys.readouterr().err
    assert generate("", "vae.pt") == 2 and "name it with --vae_checkpoint" in capsys.readouterr().err


def test_a_file_that_does_not_say_is_what_the_flag_says(cohort, capsys):
    published.save_gan("bare.model", generator(), losses=False)
    torch.save(generator().state_dict(), "barer.model")
    for name in ("bare.model", "barer.model"):
        assert (
            not open_gan(name).conditional
            and "no loss objects: with --vae an RNA-GAN, else not" in capsys.readouterr().err
        )
        assert open_gan(name, expression=True).conditional
    assert (
        generate(f"--sample_size 4 --vae --vae_checkpoint vae.pt {TABLES} --patient1 {PATIENT} --out x", "bare.model")
        == 0
    )
    assert read("x/manifest.json")["made_from"]["kind"] == "rna-gan"


def test_distances_of_published_files(cohort, capsys):
    words = f"--checkpoint rna-gan.model --checkpoint2 gan.model --config lung.json --patient1 {PATIENT}"
    words += f" --vae_checkpoint vae.pt {TABLES} --sample_size 20 --iterations 1 --extractor_side tiles --device cpu"
    assert gan_toy.run(fid, f"{words} --out f") == 0
    sources = read("f/metrics.json")["sources"]
    (a, b) = sources.values()
    assert a["digest"] == open_gan("rna-gan.model").digest and b["digest"] == open_gan("gan.model").digest
    assert a["vae_published"]["rows"] and a["published"]["loss_objects"] == ["WassersteinGeneratorLossVAE"]
    assert "published RNA-GAN rna-gan, profile" in a["label"] and b["label"] == "published GAN gan" and a["mpp"] is None
    words = (
        "--matrix real=real:lung.json gan=gan.model --split test --sample_size 6 --iterations 1 --extractor_side tiles"
    )
    assert gan_toy.run(fid, f"{words} --out m --device cpu") == 0


def test_evaluation_finds_that_published_tiles_do_not_follow_the_profile(cohort, capsys):
    published.save_gan("late.model", generator(2), published.trained(published.betaVAE(), gain=3), epoch=None)
    words = f"--checkpoint late.model --config lung.json --vae_checkpoint vae.pt {TABLES} --tiles 3 --re_pairings 19"
    words += " --sampling_seeds 1 --out e --split val --device cpu"
    assert gan_toy.run(evaluate_conditioning, words) == 0
    found = read("e/metrics.json")
    assert "tiles do not depend on the expression (0 grey levels" in found["summary"]
    assert found["gan"]["vae_published"]["fit_scaler"] == ["lung.csv", "brain.csv"]
    assert "epoch not known, loss WassersteinGeneratorLossVAE;" in Path("e/report.html").read_text()
    said = capsys.readouterr()
    assert said.out.count("the published code's beta-VAE, weights") == 1  # it is opened for each split
    assert said.err.count("cannot depend on the profile") == 1


def test_an_rna_gan_of_ours_is_trained_with_the_published_beta_vae(cohort, capsys):
    words = "--config lung.json --loss_type wgangpvae --condition add --max_steps 2 --vae_checkpoint vae.pt"
    assert gan_toy.run(histopathology_gan, f"{words} --model_dir checkpoints/no") == 2
    assert "--fit_scaler TABLE" in capsys.readouterr().err
    assert gan_toy.run(histopathology_gan, f"{words} {TABLES} --model_dir checkpoints/mine") == 0
    state = load_checkpoint("checkpoints/mine/mine.model", "gan")[0]
    assert state["vae_digest"] == open_vae("vae.pt", fit=FIT)[1] and state["settings"]["fit_scaler"] == list(FIT.tables)
    assert generate(f"--sample_size 4 --patient1 {PATIENT} --out t", "checkpoints/mine") == 0  # its settings name both
    assert read("t/manifest.json")["made_from"]["vae_published"]["digest"] == state["vae_digest"]
    words = "--config lung.json --loss_type wgan --max_steps 2 --vae_checkpoint vae.pt"
    assert gan_toy.run(histopathology_gan, f"{words} --model_dir checkpoints/plain") == 0


def test_profiles_drawn_and_moved_by_the_published_beta_vae(cohort, capsys):
    Path("vae.json").write_text(
        json.dumps({"path_csv": ["data/lung.csv", "data/brain.csv"], "save_dir": "r", "device": "cpu"})
    )
    words = "--config vae.json --vae_checkpoint vae.pt"
    assert gan_toy.run(betaVAE_sample, f"{words} --num_samples 4 --no_check --out s.h5ad") == 2
    assert "--fit_scaler TABLE" in capsys.readouterr().err
    assert gan_toy.run(betaVAE_sample, f"{words} {TABLES} --num_samples 4 --no_check --out s.h5ad") == 0
    assert read("s.metrics.json")["vae_published"]["transform"] == "ln_nonzero"
    assert len(read_expression("s.h5ad")) == 4
    assert gan_toy.run(betaVAE_interpolation, f"{words} {TABLES} --from lung --to brain --out i") == 0
    assert read("i/metrics.json")["vae_published"]["fit_scaler"] == ["lung.csv", "brain.csv"]


def test_a_table_for_the_published_beta_vae(cohort, capsys):
    words = "expression --input data/lung.csv --unit tpm --orientation genes_in_columns --checkpoint vae.pt --out t.csv"
    assert gan_toy.run(prepare_data, words) == 2 and "--fit_scaler TABLE" in capsys.readouterr().err
    assert gan_toy.run(prepare_data, f"{words} {TABLES}") == 0, capsys.readouterr().err
    assert read("t.report.json")["checkpoint"]["vae_published"]["weights_digest"]
    assert read_expression("t.csv").genes == read_expression("data/lung.csv").genes


def test_whose_tiles_a_published_gan_was_trained_on_is_not_known_and_said(cohort, capsys):
    """In the classifier's tables, and in the cohort's, which needs what such a file does not hold."""
    for tissue in gan_toy.TISSUES:
        assert generate(f"--sample_size 8 --out generated/{tissue}", "gan.model") == 0
    words = "toy --real tiles/lung tiles/brain --generated generated/lung generated/brain --out images --per_class 4"
    assert gan_toy.run(prepare_data, f"{words} --split test") == 0
    said = capsys.readouterr().err
    assert "gan.model: does not say which donors it was trained on (an older file, or a published one)" in said
    assert gan_toy.run(prepare_data, "cohort --config lung.json --checkpoint vae.pt --out c.csv") == 2
    assert "a published file, which tells neither genes nor donors" in capsys.readouterr().err
    assert TrainedOn.read("gan.model").donors is None
