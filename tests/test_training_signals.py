"""A signal at every place of a training: it ends with 75 and one line, and goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time

import gan_toy
import pytest
from betavae_cohort import write_cohort
from conftest import ROOT

import betaVAE_training
import histopathology_gan
from common.checkpoint import load_checkpoint
from common.errors import EXIT_STOPPED

STEPS = 6
GAN = "histopathology_gan.py --config lung.json --loss_type wganvae --n_workers 2"
VAE = "betaVAE_training.py --config vae.json"
# Where the signal comes: in which function of which training, at which call of it; how many steps are done then.
PLACES = {
    "reading the table, GAN": (GAN, "sources.gan_expression.read_cohort_tables", 1, None),
    "opening the tiles": (GAN, "histopathology_gan.open_cohort", 1, None),
    "making the run folder": (GAN, "histopathology_gan.write_left_out", 1, None),
    "building the networks": (GAN, "histopathology_gan.GANTraining", 1, None),
    "reading the first tiles": (GAN, "sources.batches.tile_batches", 1, None),
    "in the first step": (GAN, "histopathology_gan.critic_step", 1, 1),
    "in a later step": (GAN, "histopathology_gan.generator_step", 3, 3),
    "measuring batch norm": (GAN, "sources.gan_saves.calibrate_batch_norm", 1, 4),  # at the end of epoch 1
    "saving": (GAN, "common.checkpoint.torch.save", 1, 4),
    "reading back what was saved": (GAN, "common.checkpoint._read_back", 1, 4),
    "saving the model": (GAN, "histopathology_gan.describe_model", 1, 4),
    "drawing the grid": (GAN, "sources.gan_saves.sample_tiles", 1, 4),
    "reading the table, VAE": (VAE, "betaVAE_training.read_cohort_tables", 1, None),
    "scaling": (VAE, "betaVAE_training.fingerprints", 1, None),
    "in a step, VAE": (VAE, "betaVAE_training.beta_vae_loss", 2, 2),
    "validating": (VAE, "betaVAE_training.evaluate", 1, 5),
    "saving, VAE": (VAE, "common.checkpoint.torch.save", 1, 5),
    "measuring the test donors": (VAE, "sources.vae_report.reconstruction_report", 1, STEPS),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort for each training, and what its run makes of it undisturbed."""
    folder = tmp_path_factory.mktemp("signals")
    gan_toy.make_cohort(folder)
    gan_toy.write_config(folder / "lung.json", ["lung"], batch_size=20)  # 84 tiles: 4 steps are an epoch
    write_cohort(folder, n_donors=30, n_genes=60, batch_size=8)  # 5 steps are an epoch
    here = os.getcwd()
    os.chdir(folder)
    try:
        for line in (GAN, VAE):
            assert run(line, "whole") == 0
    finally:
        os.chdir(here)
    return folder


def run(line, folder):
    name, *words = line.split()
    module = histopathology_gan if name == "histopathology_gan.py" else betaVAE_training
    return gan_toy.run(module, " ".join([*words, "--max_steps", str(STEPS), "--save_dir", folder_of(name, folder)]))


def folder_of(name, folder):
    return f"{folder}_{'gan' if name == 'histopathology_gan.py' else 'vae'}"


def digest(line, folder):
    name = line.split()[0]
    return load_checkpoint(f"{folder_of(name, folder)}/last.pt")[1]


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_anywhere_ends_with_75_and_the_run_goes_on(made, tmp_path, monkeypatch, capsys, place):
    line, target, number, done = PLACES[place]
    monkeypatch.chdir(made)
    folder = str(tmp_path / "run")
    module, _, function = target.rpartition(".")
    names = module.split(".")
    owner = __import__(".".join(names[:2] if names[0] in ("common", "sources") else names[:1]), fromlist=["x"])
    for name in names[2:]:
        owner = getattr(owner, name)
    real, calls = getattr(owner, function), []

    def signalled(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[len(place) % 3])
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, signalled)
        assert run(line, folder) == EXIT_STOPPED
    said = [text for text in capsys.readouterr().err.splitlines() if "error:" in text]
    assert len(said) == 1 and said[0].endswith("type the same command again to go on") and "stopped by " in said[0]
    name = line.split()[0]
    where = tmp_path / folder_of(name, "run")
    assert not list(tmp_path.rglob(".*.partial"))
    if done is None:
        assert not (where / "last.pt").exists()
    else:
        assert load_checkpoint(where / "last.pt")[0]["step"] >= done
    assert run(line, folder) == 0
    assert digest(line, folder) == digest(line, "whole")


@pytest.mark.parametrize("line", [GAN, VAE])
@pytest.mark.parametrize("times", [1, 2])
def test_a_whole_training_stopped_from_outside(made, tmp_path, line, times):
    """Once: it saves. Twice: it leaves at once, and what was saved before stands."""
    name, *words = line.split()
    words = [sys.executable, ROOT / name, *words, "--num_epochs", "100000", "--save_dir", tmp_path / "run"]
    process = subprocess.Popen(words, cwd=made, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (tmp_path / "run" / "last.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    if times == 2:
        os.kill(process.pid, signal.SIGSTOP)  # so that both are there before a step ends
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        os.kill(process.pid, signal.SIGCONT)
    else:
        process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, error
    assert ("everything is saved; type the same command again" in error.splitlines()[-1]) == (times == 1)
    assert load_checkpoint(tmp_path / "run" / "last.pt")[0]["step"] > 0 and not list(tmp_path.rglob(".*.partial"))
