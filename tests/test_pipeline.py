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

import pytest
from conftest import ROOT

from common.files import write_json

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


@pytest.mark.parametrize("line", COMMANDS, ids=[f"{i + 1:02d}-{c.split('.py')[0]}" for i, c in enumerate(COMMANDS)])
def test_a_printed_command_line_runs_as_printed(work, command, line, capsys):
    if line.startswith("wsi_model.py") and not (work / "images_form").exists():
        generated = " ".join(str(p.parent) for p in sorted(work.glob("generated/*/*/manifest.json")))
        stores = [
            json.loads((work / f"configs/gan_run_{t}.json").read_text())["patch_data_path"][0]
            for t in ("lung", "brain")
        ]
        assert command(f"prepare_data.py toy --real {' '.join(stores)} --generated {generated} --out images_form") == 0
    if line in AS_SUBPROCESS:
        result = subprocess.run([sys.executable, f"{ROOT}/{line.split()[0]}", *shlex.split(line)[1:]], cwd=work)
        assert result.returncode == 0
    else:
        assert command(line) == 0
