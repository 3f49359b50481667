"""--dry_run: everything, in a temporary place, and the memory it took; and the estimate that a normal run tells."""

import json
import os
import re
import signal
from pathlib import Path

import gan_toy
import pytest
from betavae_cohort import write_cohort

import betaVAE_training
import histopathology_gan
from common.config import GANSettings
from common.errors import run_command
from common.run import Run
from models.gan_settings import for_rehearsal
from models.schedules import side_at
from sources import gan_saves

made = gan_toy.made


@pytest.fixture
def cohort(made, tmp_path, monkeypatch):
    gan_toy.copy_here(made, tmp_path, monkeypatch)
    gan_toy.write_config(Path("lung.json"), ["lung"], eval_every=50, eval_tiles=6, feature_side=32)
    return tmp_path


@pytest.fixture
def saved(monkeypatch):
    """What a run saves and restores, in order: the file's name, or "restored step"."""
    found = []
    save, restore = Run.save, Run.restore

    def watched_save(run, name, kind, state):
        found.append(name)
        return save(run, name, kind, state)

    def watched_restore(run, kind):
        state = restore(run, kind)
        found.append("new" if state is None else f"restored {state['step']}")
        return state

    monkeypatch.setattr(Run, "save", watched_save)
    monkeypatch.setattr(Run, "restore", watched_restore)
    return found


def gan(words):
    return gan_toy.run(histopathology_gan, f"--config lung.json {words}")


def vae(config, *flags):
    words = ["--config", str(config), *map(str, flags)]
    return run_command(betaVAE_training.main, betaVAE_training.build_parser(), words)


def files(folder):
    """What is there; a table's cache beside it may come at any time."""
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".cache"}


@pytest.mark.parametrize("loss", ["wgan", "rpganvae --gan_type residual"])
def test_a_dry_run_of_a_gan_does_everything_and_touches_nothing(cohort, saved, capsys, loss):
    before = files(cohort)
    assert gan(f"--model_dir checkpoints/run --loss_type {loss} --dry_run --log 1 --restart") == 0
    assert files(cohort) == before
    said = capsys.readouterr().out.splitlines()
    pattern = r"dry run: data, two steps, a measurement, a grid, saving and loading: all went well; "
    pattern += r"memory \d+ [kM]B measured, \d+ [kM]B estimated; checkpoints/run was not touched"
    assert re.fullmatch(pattern, said[-1]), said[-1]
    everything = ["best.model", "last.pt", "run.model"]
    assert saved[0] == "new" and sorted(saved[1:4]) == everything and saved[4] == "restored 1"
    assert {"last.pt", "run.model"} <= set(saved[5:])


def test_a_dry_run_beside_a_trained_run_leaves_it_as_it_is(cohort, capsys):
    assert gan("--model_dir checkpoints/run --loss_type wgan --max_steps 1") == 0
    before = files(cohort)
    assert gan("--model_dir checkpoints/run --loss_type rpgan --dry_run") == 0  # other settings: a run of its own
    assert files(cohort) == before and sorted(os.listdir("checkpoints")) == ["betavae_tissues", "run"]


def test_a_dry_run_fails_as_the_run_would_and_leaves_nothing(cohort, capsys, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device", "samples/epoch_0001.png")

    monkeypatch.setattr(gan_saves, "write_png", broken)
    before = files(cohort)
    assert gan("--model_dir checkpoints/run --loss_type wgan --dry_run") == 2
    assert "no space left on the disk" in capsys.readouterr().err and files(cohort) == before


def test_a_signal_ends_a_dry_run_and_nothing_is_kept(cohort, capsys, monkeypatch):
    real = histopathology_gan.generator_step

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(histopathology_gan, "generator_step", interrupted)
    before = files(cohort)
    assert gan("--model_dir checkpoints/run --loss_type wgan --dry_run") == 75
    assert "dry run: stopped by a signal; nothing of it is kept" in capsys.readouterr().err and files(cohort) == before


def test_a_dry_run_of_a_vae_does_everything_and_touches_nothing(tmp_path, saved, capsys):
    config = write_cohort(tmp_path, n_donors=30, n_genes=100, batch_size=8)
    before = files(tmp_path)
    assert vae(config, "--dry_run") == 0
    assert files(tmp_path) == before
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("dry run: data, two steps, validation, test, saving and loading: all went well; memory")
    assert saved[:4] == ["new", "best.pt", "last.pt", "restored 1"] and saved[-1] == "last.pt"
    assert sum(line.startswith("test, all") for line in said) >= 1


def test_a_dry_run_asks_for_all_that_a_later_step_does():
    late = GANSettings(penalty_every=8, first_side=8, grow_images=1000, img_size=32, augment=0.5, augment_images=500)
    cfg = for_rehearsal(late)
    assert side_at(0, cfg.first_side, cfg.img_size, cfg.grow_images) == 32 != side_at(0, 8, 32, late.grow_images)
    assert cfg.penalty_every == 1 and cfg.augment_images == 0 and cfg.num_epochs == 2
    assert (cfg.batch_size, cfg.img_size, cfg.augment) == (late.batch_size, 32, 0.5)  # what memory depends on
    assert cfg.eval_every == 0 and for_rehearsal(GANSettings(eval_every=9)).eval_every == 1


def test_save_every_below_0_is_refused(cohort, capsys):
    assert gan("--loss_type wgan --save_every -1 --dry_run") == 2
    assert vae(write_cohort(cohort / "vae", n_donors=30, n_genes=100), "--save_every", "-1", "--dry_run") == 2
    said = capsys.readouterr().err
    assert "lung.json: save_every = -1: expected 0 or more" in said and "vae.json: save_every -1: seconds, 0 or" in said


@pytest.mark.parametrize("flag", ["", "--dry_run"])
def test_without_a_run_folder_a_dry_run_says_what_a_run_says(cohort, capsys, flag):
    before = files(cohort)
    assert gan(f"--loss_type wgan {flag}") == 2
    config = write_cohort(cohort / "vae", n_donors=30, n_genes=100, save_dir="")
    assert vae(config, *flag.split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert sum("error: no run folder: set save_dir in the config or name one with --save_dir" in s for s in said) == 2
    assert {p: b for p, b in files(cohort).items() if "vae" not in p.parts} == before


# ---- A normal run ----


def test_both_trainings_say_what_they_will_take_before_they_start(cohort, tmp_path, capsys, monkeypatch):
    assert gan("--model_dir run --loss_type wgan --max_steps 1") == 0
    first = capsys.readouterr().out.splitlines()[0]
    pattern = r"memory: about \d+ MB of cpu, [\d.]+ GB are free \(weights \d+ [kM]B, .*; batch 4\)"
    assert re.fullmatch(pattern, first), first
    config = write_cohort(tmp_path / "vae", n_donors=30, n_genes=100, num_epochs=1)
    assert vae(config) == 0
    assert capsys.readouterr().out.startswith("memory: about ")
    monkeypatch.setattr("models.memory.free_on", lambda device: 1e6)
    assert gan("--model_dir other --loss_type wgan --max_steps 1") == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: memory")]
    assert "1 MB are free on cpu" in warning and "--batch_size" in warning


def test_an_epoch_of_a_vae_says_how_fast_and_how_much(tmp_path):
    assert vae(write_cohort(tmp_path, n_donors=30, n_genes=100, num_epochs=3)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "epoch" in line]
    assert all(line["profiles_per_second"] > 0 and line["memory_gb"] > 0.01 for line in epochs) and len(epochs) == 3
    assert epochs[0]["seconds_left"] > 0 and epochs[-1]["seconds_left"] == 0
