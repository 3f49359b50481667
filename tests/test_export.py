"""Models for others: safetensors and a model card, read back the same; and what the card does not say."""

import json
import shutil
from pathlib import Path

import gan_toy
import numpy as np
import published_files as published
import pytest
import torch
from betavae_cohort import write_cohort
from safetensors.torch import load_file, save_file

import betaVAE_training
import fid
import generate_tissue_images
import histopathology_gan
import prepare_data
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import InputError
from common.exported import read_exported, write_exported
from datasets.image_folder import read_image, read_image_folder
from models.dcgan import DCGANGenerator
from models.features import load_extractor
from sources.export import export_model
from sources.gan import open_gan
from sources.vae import Fit, open_vae

PATIENT = "GTEX-D03-0625.svs"
FIT = Fit(("data/lung.csv", "data/brain.csv"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The toy cohort with a GAN and an RNA-GAN of the lung, trained for a moment."""
    torch.set_num_threads(1)
    folder = gan_toy.make_cohort(tmp_path_factory.mktemp("cohort"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gan_toy.train_two("wgangpvae", steps=2)
    return folder


cohort = gan_toy.cohort


def export(words):
    return gan_toy.run(prepare_data, f"export {words}")


def tiles_of(checkpoint, out, more=f"--patient1 {PATIENT}"):
    words = f"--checkpoint {checkpoint} --config lung.json --sample_size 8 --out {out} {more}"
    assert gan_toy.run(generate_tissue_images, words) == 0
    return np.stack([read_image(path) for path in read_image_folder(out)])


def read(path):
    return json.loads(Path(path).read_text())


# ---- The round trip ----


def test_an_rna_gan_comes_back_the_same_with_its_vae_and_nothing_else_at_hand(cohort, capsys):
    before = tiles_of("checkpoints/rna-gan_lung", "before")
    assert export("--format safetensors --checkpoint checkpoints/rna-gan_lung --out out/rna-gan") == 0
    assert "out/rna-gan/betavae/model.safetensors: with config.json and README.md; read back" in capsys.readouterr().out
    assert sorted(p.name for p in Path("out/rna-gan").iterdir()) == [
        "README.md",
        "betavae",
        "config.json",
        "model.safetensors",
    ]
    own, same = open_gan("checkpoints/rna-gan_lung"), open_gan("out/rna-gan")
    assert same.digest == own.digest and same.run == "rna-gan" and same.trained_on.donors == own.trained_on.donors
    vae_digest = load_checkpoint("checkpoints/betavae_tissues/best.pt")[1]
    assert open_vae("out/rna-gan/betavae")[1] == vae_digest == own.state["vae_digest"]
    shutil.rmtree("checkpoints")
    assert np.array_equal(tiles_of("out/rna-gan", "after"), before)
    about = read("after/manifest.json")["made_from"]
    assert about["digest"] == own.digest and about["split"] == "test"
    words = "--checkpoint out/rna-gan --config lung.json --patient1 " + PATIENT
    words += " --sample_size 6 --iterations 1 --extractor_side tiles --device cpu --out f"
    assert gan_toy.run(fid, words) == 0


def test_a_vae_and_a_plain_gan_come_back_the_same(cohort):
    before = tiles_of("checkpoints/gan_lung", "before", "")
    assert export("--checkpoint checkpoints/gan_lung.model --out out/gan") == 0
    assert np.array_equal(tiles_of("out/gan", "after", ""), before)
    assert not Path("out/gan/betavae").exists()
    assert export("--checkpoint checkpoints/betavae_tissues.pt --out out/vae") == 0
    state, digest = load_checkpoint("checkpoints/betavae_tissues/best.pt", "betavae")
    again, same = load_checkpoint("out/vae/model.safetensors", "betavae")
    assert same == digest and again["genes"] == state["genes"] and set(again) == set(state)
    weights = load_file("out/vae/model.safetensors")
    assert torch.equal(weights["model/z_mu.weight"], state["model"]["z_mu.weight"])


def test_published_files_come_out_with_what_was_made_for_them(cohort):
    vae = published.save_vae(cohort / "vae.pt")
    published.save_gan(
        cohort / "rna-gan.model", published.trained(DCGANGenerator(gan_toy.LATENT, gan_toy.SIDE, 4), 2), vae
    )
    fitted = "--vae_checkpoint vae.pt --fit_scaler data/lung.csv data/brain.csv"
    before = tiles_of("rna-gan.model", "before", f"--patient1 {PATIENT} {fitted}")
    assert export(f"--checkpoint rna-gan.model {fitted} --out out/rna-gan") == 0
    Path("vae.pt").rename("elsewhere.pt")
    Path("rna-gan.model").rename("elsewhere.model")
    assert np.array_equal(tiles_of("out/rna-gan", "after"), before)
    digest = open_vae("elsewhere.pt", fit=FIT)[1]
    assert open_vae("out/rna-gan/betavae")[1] == digest  # no --fit_scaler is needed any more, and the GAN knows it
    assert open_gan("out/rna-gan").digest == open_gan("elsewhere.model").digest
    card = Path("out/rna-gan/README.md").read_text()
    assert "of one profile tiles cannot depend on it" in card and "who trained it: not known" in card
    assert '"fit_scaler": ["lung.csv", "brain.csv"]' in Path("out/rna-gan/betavae/README.md").read_text()
    words = "--checkpoint elsewhere.model --vae_checkpoint checkpoints/betavae_tissues --out out/no"
    assert export(words) == 2 and not Path("out/no").exists()


def test_without_its_vae_an_rna_gan_is_exported_with_a_warning(cohort, capsys):
    shutil.rmtree("checkpoints/betavae_tissues")
    assert export("--checkpoint checkpoints/rna-gan_lung --out out/alone") == 0
    assert "out/alone: without the beta-VAE, name it with --vae_checkpoint: " in capsys.readouterr().err
    assert not Path("out/alone/betavae").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_any_state_of_a_checkpoint_comes_back_to_the_bit(tmp_path, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    images = base.reshape(1, 4, 2, 3).contiguous(memory_format=torch.channels_last)
    state = {"a": base, "view": base[1:3], "turned": base.t(), "images": images, "none": None, "number": 0.1, "n": 7}
    state |= {
        "deep": {"er": {"x": base + 1, "words": ["a", "b"]}, "empty": {}},
        "flag": True,
        "text": "é",
        "0": (1, 2.5),
    }
    digest = save_checkpoint(tmp_path / "a.pt", "gan", state)
    path = write_exported(tmp_path / "out", "gan", digest, state, "card")
    found, same = load_checkpoint(path, "gan")
    assert same == digest and found["number"] == 0.1 and found["deep"]["er"]["words"] == ["a", "b"]
    assert torch.equal(found["turned"], base.t()) and found["deep"]["empty"] == {}


# ---- The card ----


def test_the_card_says_what_is_known_and_names_no_donor(cohort, capsys):
    digest = open_gan("checkpoints/rna-gan_lung").digest
    vae = load_checkpoint("checkpoints/betavae_tissues/best.pt")[0]
    shared = "--config lung.json --sample_size 6 --iterations 2 --extractor_side tiles --device cpu"
    for name in ("rna-gan_lung", "gan_lung"):
        patient = f"--patient1 {PATIENT} --config2 lung.json" if name == "rna-gan_lung" else ""
        assert gan_toy.run(fid, f"--checkpoint checkpoints/{name} {shared} {patient} --out fid/{name}") == 0
    found = {
        "conditioning/rna": {"gan": {"digest": digest}, "split": "test", "summary": "tiles follow the expression"},
        "conditioning/no": {"gan": {"digest": "other"}, "split": "test", "summary": "not this one"},
        "conditioning/older": {"gan": {"digest": digest}, "split": "test"},
        "fid/foreign": [1],
        "fid/lists": {"gan": [], "sources": [], "vae_digest": 3},
    }
    for folder, values in found.items():
        Path(folder).mkdir(parents=True)
        Path(folder, "metrics.json").write_text(json.dumps(values))
    capsys.readouterr()
    export_model("checkpoints/rna-gan_lung", "out")
    card, said = Path("out/README.md").read_text(), capsys.readouterr().err
    older = f"{cohort}/conditioning/older/metrics.json: names this model, but has no 'summary'; measure it again"
    assert said == f"warning: not in the model card: {older}\n"
    assert card.startswith("---\nlicense: other\n") and "## Licence\n\nNot stated; whoever publishes" in card
    assert (
        digest in card
        and vae_digest(cohort) in card
        and read("checkpoints/rna-gan_lung/config.json")["cohort_digest"] in card
    )
    pair, extractor = read("fid/rna-gan_lung/metrics.json")["pairs"][0], load_extractor(side=gan_toy.SIDE)
    line = f"rna-gan rna-gan_lung (of one patient) against real, n = 6 and 6, 2 draws, {extractor.name} "
    line += f"({extractor.digest[:8]}): FID {pair['fid']['mean']:.4g} (sd {pair['fid']['sd']:.2g}), "
    assert line + f"KID {pair['kid']['mean']:.4g} (sd {pair['kid']['sd']:.2g})\n" in card
    assert card.count("against real") == 1  # found from the run and from here, named once
    assert "does it follow the expression? Split test: tiles follow the expression" in card
    assert "not this one" not in card and "other" not in card.split("## Measured")[1].split("## Settings")[0]
    assert "it has no salt, so whoever has a list of donors (GTEX's and TCGA's are public) can try them" in card
    assert "28 training donors" not in card and f"{len(vae['trained_donors'])} training donors" in card
    assert "by a hash of split_seed 99" in card and '"loss_type": "wgangpvae"' in card
    assert "generate_tissue_images.py --checkpoint THIS_FOLDER" in card
    for text in (card, Path("out/betavae/README.md").read_text()):
        assert "GTEX-" not in text and str(cohort) not in text and not any(d in text for d in vae["trained_donors"])
    assert "data/lung.csv" not in card and '"lung.csv"' in card  # settings without folders


def vae_digest(cohort):
    return load_checkpoint(cohort / "checkpoints/betavae_tissues/best.pt")[1]


def test_the_card_of_a_vae_has_its_run_s_errors(tmp_path):
    config = write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=1)
    assert gan_toy.run(betaVAE_training, f"--config {config}") == 0
    export_model(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for group, methods in read(tmp_path / "run" / "metrics.json")["test"].items():
        line = (
            f"held-out donors, {group} (n = {methods['profiles']} of {methods['donors']} donors), mean squared error "
        )
        line += "in z-scores of log1p TPM, training donors' mean and sd: "
        assert f"{line}vae {methods['vae']['mse']:.3f}; tissue_mean {methods['tissue_mean']['mse']:.3f}; " in card
    assert "held-out donors, lung" in card and "100 genes in TPM" in card


def test_the_card_of_the_best_of_a_run_says_what_it_was_chosen_by(cohort):
    gan_toy.write_config(Path("lung.json"), ["lung"], eval_every=8, eval_tiles=6, feature_side=32)
    assert gan_toy.run(histopathology_gan, "--config lung.json --model_dir run --loss_type wgan --max_steps 2") == 0
    export_model("run/best.model", "out")
    kid, extractor = load_checkpoint("run/best.model")[0]["validation"]["kid"], load_extractor(side=32)
    line = f"validation donors, n = 6 drawn and 6 real, {extractor.name} ({extractor.digest[:8]}): KID {kid:.4g}, by"
    assert line in Path("out/README.md").read_text()
    export_model("run", "last")
    assert "Nothing was found beside the run." in Path("last/README.md").read_text()


# ---- What is refused ----


def test_damage_is_named(cohort, capsys):
    export_model("checkpoints/gan_lung", "out")
    whole, config = Path("out/model.safetensors").read_bytes(), read("out/config.json")

    def refused(message):
        with pytest.raises(InputError, match=message):
            open_gan("out")

    Path("out/model.safetensors").write_bytes(whole[:-100])
    refused(r"out/model.safetensors: not readable, or cut short.*export it again")
    Path("out/model.safetensors").write_bytes(b"\xff" * 8 + whole[8:])  # a header of 16 exabytes
    refused("not readable, or cut short")
    Path("out/model.safetensors").write_bytes(whole[:-4] + b"\0\0\x80\x3f")
    refused("content differs from its digest")
    Path("out/model.safetensors").write_bytes(whole)
    for changed, message in (
        (config | {"format": "x"}, "not of an exported model"),
        (config | {"state": 3}, "not of an exported model"),
        (config | {"kind": "betavae"}, "holds a betavae checkpoint"),
        (config | {"state": config["state"] | {"generator": 1}}, "has no place in config.json"),
        (config | {"state": config["state"] | {"mpp": 0.25}}, "content differs from its digest"),
    ):
        Path("out/config.json").write_text(json.dumps(changed))
        refused(message)
    Path("out/config.json").write_text("{")
    refused("config.json: line 1")
    Path("out/config.json").unlink()
    refused("config.json: no such file")


def test_what_cannot_be_exported_is_said(cohort, capsys):
    for words, message in (
        (
            "--checkpoint checkpoints/gan_lung/last.pt --out a",
            "a GAN's <run>.model or a beta-VAE's best.pt was expected",
        ),
        ("--checkpoint checkpoints/gan_lung --out data", "data: there already; name a folder that is new or empty"),
        ("--checkpoint checkpoints/gan_lung --tiles tiles/lung --out a", "takes --checkpoint, and no --tiles"),
        (
            "--format folder --checkpoint checkpoints/gan_lung --out a",
            "--format folder takes --tiles, and no --checkpoint",
        ),
        ("--format safetensors --out a", "--format safetensors takes --checkpoint"),
        ("--checkpoint nowhere --out a", "nowhere: no such checkpoint or run folder"),
    ):
        assert export(words) == 2 and message in capsys.readouterr().err
        assert not Path("a").exists()
    with pytest.raises(InputError, match="a/b: a name with / in it cannot be exported"):
        write_exported("b", "gan", "", {"a/b": torch.ones(1)}, "")


def test_tensors_of_another_file_are_not_taken(tmp_path):
    path = write_exported(tmp_path / "out", "gan", "", {"a": torch.ones(2)}, "")
    save_file({"b/c": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"b/c has no place in config.json"):
        read_exported(path)
