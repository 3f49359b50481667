"""The command lines of the paper's README, as printed, on a small cohort that has those slide names.

The work folder's configs bear the printed names at demo size (32 px, features at the tiles' own side). The lines run in
the order of the README through each command's main(), two of them as subprocesses.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from common.files import write_json
from datasets.expression import read_expression

LUNG, BRAIN = "GTEX-15RJ7-0625.svs", "GTEX-1C6WA-3025.svs"
VAE = "--sample_size 600 --vae --vae_checkpoint checkpoints/betavae_tissues.pt"
RNA_LUNG, RNA_BRAIN = "./checkpoints/rna-gan_lung.model", "./checkpoints/rna-gan_brain.model"
GAN_LUNG, GAN_BRAIN = "./checkpoints/gan_lung.model", "./checkpoints/gan_brain/gan_brain.model"
CONFIG_LUNG, CONFIG_BRAIN = "--config configs/gan_run_lung.json", "--config configs/gan_run_brain.json"


def gan(name, tissue, epochs, loss):
    return (
        f"histopathology_gan.py --seed 99 --config configs/gan_run_{tissue}.json "
        f"--image_dir gan_generated_images/images_{name} --model_dir ./checkpoints/{name} --num_epochs {epochs} "
        f"--gan_type dcgan --loss_type {loss} --num_patches 600"
    )


COMMANDS = [
    "betaVAE_training.py --seed 99 --config configs/betavae_tissues.json --log 1 --parallel 0",
    "betaVAE_interpolation.py --seed 99 --config configs/betavae_tissues.json --log 0 --parallel 0",
    "betaVAE_sample.py --seed 99 --config configs/betavae_tissues.json --log 0 --parallel 0",
    gan("gan_brain", "brain", 39, "wgan"),
    gan("gan_lung", "lung", 91, "wgan"),
    gan("rna-gan_brain", "brain", 24, "wganvae"),
    gan("rna-gan_lung", "lung", 11, "wganvae"),
    # real lung vs GAN lung, vs RNA-GAN lung; GAN lung vs RNA-GAN lung
    f"fid.py --checkpoint {GAN_LUNG} {CONFIG_LUNG} {VAE} --patient1 {LUNG}",
    f"fid.py --checkpoint {RNA_LUNG} {CONFIG_LUNG} {VAE} --patient1 {LUNG}",
    f"fid.py --checkpoint {RNA_LUNG} --checkpoint2 {GAN_LUNG} {CONFIG_LUNG} {VAE} --patient1 {LUNG}",
    # GAN lung vs real brain; RNA-GAN lung vs real brain; GAN brain vs GAN lung
    f"fid.py --checkpoint {GAN_LUNG} {CONFIG_BRAIN} --sample_size 600",
    f"fid.py --checkpoint {RNA_LUNG} {CONFIG_BRAIN} {VAE} --patient1 {BRAIN}",
    f"fid.py --checkpoint {GAN_LUNG} {CONFIG_BRAIN} --sample_size 600 --checkpoint2 {GAN_BRAIN}",
    # RNA-GAN brain vs GAN lung; RNA-GAN lung vs GAN brain; RNA-GAN lung vs RNA-GAN brain
    f"fid.py --checkpoint2 {GAN_LUNG} --checkpoint {RNA_BRAIN} {CONFIG_BRAIN} {VAE} --patient1 {BRAIN}",
    f"fid.py --checkpoint2 {GAN_BRAIN} --checkpoint {RNA_LUNG} {CONFIG_LUNG} {VAE} --patient1 {LUNG}",
    f"fid.py --checkpoint2 {RNA_BRAIN} --checkpoint {RNA_LUNG} {CONFIG_LUNG} --config2 configs/gan_run_brain.json "
    f"{VAE} --patient1 {LUNG} --patient2 {BRAIN}",
    # real brain vs GAN brain, vs RNA-GAN brain; GAN brain vs RNA-GAN brain
    f"fid.py --checkpoint {GAN_BRAIN} {CONFIG_BRAIN} --sample_size 600 --patient1 {BRAIN}",
    f"fid.py --checkpoint {RNA_BRAIN} {CONFIG_BRAIN} {VAE} --patient1 {BRAIN}",
    f"fid.py --checkpoint {RNA_BRAIN} --checkpoint2 {GAN_BRAIN} {CONFIG_BRAIN} {VAE} --patient1 {BRAIN}",
    # GAN brain vs real lung; RNA-GAN brain vs real lung; RNA-GAN lung vs RNA-GAN brain, again
    f"fid.py --checkpoint {GAN_BRAIN} {CONFIG_LUNG} --sample_size 600",
    f"fid.py --checkpoint {RNA_BRAIN} {CONFIG_LUNG} {VAE} --patient1 {LUNG}",
    f"fid.py --checkpoint2 {RNA_BRAIN} --checkpoint {RNA_LUNG} {CONFIG_LUNG} --config2 configs/gan_run_brain.json "
    f"{VAE} --patient1 {LUNG} --patient2 {BRAIN}",
    # tiles for a patient, and for a profile of another study
    f"generate_tissue_images.py --checkpoint {RNA_LUNG} --checkpoint2 {GAN_LUNG} {CONFIG_LUNG} {VAE} --patient1 {LUNG}",
    f"generate_tissue_images.py --checkpoint {RNA_BRAIN} --checkpoint2 {GAN_BRAIN} {CONFIG_BRAIN} {VAE} "
    f"--patient1 {BRAIN}",
    f"generate_tissue_images.py --checkpoint {RNA_LUNG} {CONFIG_BRAIN} {VAE} "
    "--rna_data GSE120795_lung_proteincoding.csv --random_patient",
    f"generate_tissue_images.py --checkpoint {RNA_BRAIN} {CONFIG_BRAIN} {VAE} "
    "--rna_data GSE120795_brain_proteincoding.csv --random_patient",
    # the classifier on real and on generated tiles
    "wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv",
    "wsi_model.py --patch_data_path images_form/ --csv_path rna-gan_toy_example.csv",
]
AS_SUBPROCESS = {COMMANDS[2], COMMANDS[10]}
VAE_SETTINGS = {
    "encoder_sizes": [128, 64],
    "decoder_sizes": [64, 128],
    "latent_dim": 16,
    "input_dropout": 0.1,
    "lr": 1e-3,
    "num_epochs": 20,
    "batch_size": 16,
}
GAN_SETTINGS = {
    "img_size": 32,
    "encoding_dims": 16,
    "step_channels": 8,
    "batch_size": 32,
    "num_grid": 8,
    "cache": "ram",
    "lr_generator": 5e-4,
    "lr_critic": 5e-4,
    "feature_side": 32,
}


@pytest.fixture(scope="module")
def work(cohort, tmp_path_factory, command):
    """The folder in which the lines are typed: configs of the printed names, profiles of another study."""
    folder = tmp_path_factory.mktemp("work")
    here = os.getcwd()
    os.chdir(folder)
    (folder / "configs").mkdir()
    tables = {t: f"{cohort}/data/{t}.csv" for t in ("lung", "brain")}
    tiles = {t: f"{cohort}/tiles/{t}" for t in tables}
    common = {"device": "cpu", "n_workers": 0}
    vae = {"path_csv": list(tables.values()), "save_dir": "checkpoints/betavae_tissues"} | VAE_SETTINGS | common
    write_json("configs/betavae_tissues.json", vae)
    for name, tissues in {"gan_run_lung": ["lung"], "gan_run_brain": ["brain"], "gan_run": ["lung", "brain"]}.items():
        data = {"path_csv": [tables[t] for t in tissues], "patch_data_path": [tiles[t] for t in tissues]}
        write_json(f"configs/{name}.json", data | GAN_SETTINGS | common)
    for tissue in tables:
        shutil.copy(cohort / f"demo/geo/GSE120795_{tissue}_proteincoding.csv", folder)
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    yield folder
    os.chdir(here)


def make_classifier_inputs(work, command):
    """Pictures and tables for the last two lines: real tiles, and RNA-GAN tiles of all held-out donors."""
    folders = []
    for tissue in ("lung", "brain"):
        folders.append(f"generated/rna-gan_{tissue}/held_out")
        line = f"generate_tissue_images.py --checkpoint checkpoints/rna-gan_{tissue} --sample_size 60 --vae"
        assert command(f"{line} --config configs/gan_run_{tissue}.json --out {folders[-1]}") == 0
    stores = [
        json.loads((work / f"configs/gan_run_{t}.json").read_text())["patch_data_path"][0] for t in ("lung", "brain")
    ]
    real, generated = " ".join(stores), " ".join(folders)
    assert command(f"prepare_data.py toy --real {real} --generated {generated} --out images_form --per_class 60") == 0


@pytest.mark.parametrize("line", COMMANDS, ids=[f"{i + 1:02d}-{c.split('.py')[0]}" for i, c in enumerate(COMMANDS)])
def test_a_printed_command_line_runs_as_printed(work, command, line, capsys):
    if line == COMMANDS[26]:
        make_classifier_inputs(work, command)
    if line in AS_SUBPROCESS:
        result = subprocess.run([sys.executable, f"{ROOT}/{line.split()[0]}", *shlex.split(line)[1:]], cwd=work)
        assert result.returncode == 0
    else:
        assert command(line) == 0


def test_every_fid_is_a_number_with_its_n_extractor_and_labels(work):
    found = sorted(work.glob("fid/*/metrics.json"))
    sides = {path.parent.name for path in found}
    assert len(found) >= len({c for c in COMMANDS if c.startswith("fid.py")}) - 2, sides  # printed lines may coincide
    for path in found:
        result = json.loads(path.read_text())
        assert result["extractor"]["input_side"] == 32 and len(result["extractor"]["weights_digest"]) == 64
        assert all(np.isfinite(result[m]["mean"]) for m in ("fid", "kid", "precision", "recall"))
        assert result["fid"]["mean"] > 0 and result["iterations"] == 5
        assert all(source["n"] > 1 and source["label"] for source in result["sources"].values())


def test_the_patient_asked_for_is_the_patient_measured(work):
    name = f"rna-gan_lung_{LUNG[:-4]}_vs_rna-gan_brain_{BRAIN[:-4]}"
    result = json.loads((work / "fid" / name / "metrics.json").read_text())
    a, b = (result["sources"][side] for side in "AB")
    assert LUNG[:-4] in a["label"] and BRAIN[:-4] in b["label"]
    assert a["vae_digest"] == b["vae_digest"] and a["digest"] != b["digest"]


def test_generated_folders_name_their_profile(work):
    for name, profile in (("rna-gan_lung", LUNG[:-4]), ("rna-gan_brain", BRAIN[:-4])):
        folder = work / "generated" / name / profile
        manifest = json.loads((folder / "manifest.json").read_text())
        assert len(list(folder.glob("*_*.png"))) >= 600 and (folder / "grid.png").exists(), sorted(folder.iterdir())[:5]
        assert (folder / "comparison.png").exists() and profile in json.dumps(manifest)
    foreign = [p for p in work.glob("generated/*/SRR*/manifest.json") if "GSE120795" in p.read_text()]
    assert len(foreign) == 2


def test_the_vae_is_measured_on_held_out_donors_and_its_samples_are_in_expression_units(work):
    test = json.loads((work / "checkpoints/betavae_tissues/metrics.json").read_text())["test"]["all"]
    assert 0 < test["vae"]["mse"] < 1 and test["tissue_mean"]["mse"] > 0  # 1: the training mean; it beats the tissue
    # mean on the demo's full cohort: tests/test_betavae_demo.py
    samples = read_expression(work / "checkpoints/betavae_tissues/samples.h5ad")
    assert samples.unit == "TPM" and (samples.values >= 0).all() and samples.values.max() > 100


def test_the_shift_from_a_to_b_is_the_opposite_of_the_shift_from_b_to_a(work):
    shifts = sorted(p.name for p in (work / "checkpoints/betavae_tissues/shifts").glob("shift_*.npz"))
    assert shifts == ["shift_brain_cortex_to_lung.npz", "shift_lung_to_brain_cortex.npz"]
    there, back = (np.load(work / "checkpoints/betavae_tissues/shifts" / name) for name in shifts)
    assert np.allclose(there["shift"], -back["shift"]) and np.abs(there["shift"]).max() > 0.1


def test_the_classifiers_tables_and_results(work):
    for stem in ("real_toy_example", "rna-gan_toy_example"):
        assert {"wsi_file_names", "Labels", "group"} <= set(pd.read_csv(work / "images_form" / f"{stem}.csv").columns)
        result = json.loads((work / "classifier" / stem / "metrics.json").read_text())
        low, high = result["scores"]["accuracy"]["interval"]
        assert 0 <= low <= result["scores"]["accuracy"]["value"] <= high <= 1 and len(result["classes"]) == 2


def test_two_tissues_in_one_gan(work, command):
    line = "histopathology_gan.py --config configs/gan_run.json --model_dir checkpoints/both --loss_type wganvae"
    assert command(f"{line} --max_steps 3") == 0
    assert command(f"fid.py --checkpoint checkpoints/both {CONFIG_LUNG} --sample_size 20 --iterations 1") == 0


def test_the_same_command_again_keeps_what_is_finished(work, command):
    for line, kept in ((COMMANDS[0], "betavae_tissues/best.pt"), (COMMANDS[6], "rna-gan_lung/rna-gan_lung.model")):
        before = (work / "checkpoints" / kept).read_bytes()
        assert command(line) == 0
        assert (work / "checkpoints" / kept).read_bytes() == before


def test_a_vae_trained_anew_is_not_mistaken_for_the_gans(work, command, capsys):
    line = (
        "betaVAE_training.py --config configs/betavae_tissues.json --save_dir checkpoints/other --seed 5 --num_epochs 2"
    )
    assert command(line) == 0
    line = COMMANDS[8].replace("checkpoints/betavae_tissues.pt", "checkpoints/other.pt")
    assert command(line) == 2
    assert "another VAE" in capsys.readouterr().err


def test_the_report_is_one_self_contained_page(work, command, cohort):
    shutil.copy(cohort / "demo" / "truth.csv", work)
    assert command("paper_figures.py report --demo . --out report.html --tiles 4") == 0
    page = (work / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 10 and "<script src" not in page and 'src="http' not in page


@pytest.mark.parametrize("name", sorted(p.name for p in ROOT.glob("*.py")))
def test_help_shows_what_it_does_and_an_example(name):
    result = subprocess.run([sys.executable, ROOT / name, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and f"python {name}" in result.stdout and "rites" in result.stdout
