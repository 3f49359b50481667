"""Exact resume: 100 steps are 50 and 50 to the bit, for the beta-VAE and for GANs, stopped by --max_steps or a signal.

Compared are every tensor and number of the checkpoints, each line of the log but for times and memory, and what each
step was given: batch, noise, masks, expression, and where torch's own random numbers stood.
"""

import json
import os
import signal
from pathlib import Path

import betavae_cohort
import gan_toy
import pytest
import torch

import betaVAE_training
import histopathology_gan
from common.checkpoint import content_digest, load_checkpoint, save_checkpoint
from models.generate import generate_tiles
from sources.gan import open_gan

HALF, STEPS = 50, 100

made, cohort = gan_toy.made, gan_toy.cohort

EVERYTHING = {
    "gan_type": "residual",
    "cond_jitter": 0.1,
    "cond_dropout": 0.2,
    "mismatched_weight": 0.5,
    "critic_condition": "projection",
    "ema_images": 100,
    "turns": True,
    "augment": 0.5,
    "augment_images": 300,  # until step 75: a step shows 4 images
    "schedule_images": 360,  # until step 90
    "lr_final": 0.1,
    "gamma_final": 0.2,
    "equalised": True,
    "penalty_form": "difference",
    "penalty_every": 3,
    "first_side": 8,
    "grow_images": 240,  # 8 px until step 60
}
CRITIC_ALONE = {"cond_jitter": 0.0, "cond_dropout": 0.0, "mismatched_weight": 0.0, "critic_condition": "none"}
GANS = {
    "all that changes": ("rpganvae", signal.SIGTERM, EVERYTHING),
    "two critic steps": ("wgan", signal.SIGUSR1, {"critic_norm": "batch", "critic_steps": 2, "optimizer": "AdamW"}),
    "the paper's form": ("wganvae", signal.SIGINT, {"ema_images": 50}),
}
VAES = {
    "constant rate": (signal.SIGTERM, {}),
    "warm-up and cosine": (
        signal.SIGUSR1,
        {"lr_schedule": "warmup_cosine", "warmup_batches": 30, "cosine_batches": 60},
    ),
}


class Watched:
    """Stands in for a step's function, which it calls; keeps the digest of what it was given, and sends a signal."""

    def __init__(self, real, given, number, after):
        self.real, self.given, self.number, self.after = real, given, number, after

    def __call__(self, *args, **kwargs):
        self.given.append(content_digest([plain(args), plain(kwargs), torch.get_rng_state()]))
        if self.number and len(self.given) == self.after:
            os.kill(os.getpid(), self.number)
        return self.real(*args, **kwargs)


def plain(value):
    """The tensors, numbers and words in an argument; of a network or optimiser its kind alone."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, histopathology_gan.Shown):
        return plain(vars(value))
    return value if value is None or isinstance(value, torch.Tensor | int | float | str) else type(value).__name__


@pytest.fixture
def run(monkeypatch):
    """run(command, the name of its step's function, words): (exit status, what each call of it was given)."""

    def call(command, name, words, number=None, after=0):
        given = []
        with monkeypatch.context() as patch:
            patch.setattr(command, name, Watched(getattr(command, name), given, number, after))
            return gan_toy.run(command, words), given

    return call


def left_in(folder, *names):
    """The state in each checkpoint, and the log without times and memory."""
    lines = Path(folder, "log.jsonl").read_text().splitlines()
    return [load_checkpoint(f"{folder}/{name}")[0] for name in names], [
        gan_toy.repeatable(json.loads(x)) for x in lines
    ]


def differences(a, b, name=""):
    """The names of what differs between two nested values."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{name}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [name]
    return [] if type(a) is type(b) and a == b else [name]


def in_halves(run, train, words, per_step, number, capsys):
    """Train STEPS steps, the command typed twice, the first stopped by --max_steps or a signal; return what was given.

    Step 50 is in the midst of an epoch, here of 10, 21 or 3 steps.
    """
    capsys.readouterr()
    status, first = run(*train, f"{words} --max_steps {STEPS if number else HALF}", number, HALF * per_step)
    assert status == (75 if number else 0) and len(first) == HALF * per_step
    stopped = "stopped by a signal after step 50; everything is saved; type the same command again to go on"
    assert (stopped in capsys.readouterr().err) == bool(number)
    status, second = run(*train, f"{words} --max_steps {STEPS}")
    assert status == 0
    return first + second


@pytest.mark.parametrize("kind", GANS)
def test_a_gans_hundred_steps_are_fifty_and_fifty(cohort, run, kind, capsys):
    loss, number, settings = GANS[kind]
    gan_toy.write_config(Path("lung.json"), ["lung"], log_interval=1, num_epochs=20, loss_type=loss, **settings)
    train, per_step = (histopathology_gan, "critic_step"), settings.get("critic_steps", 1)
    status, given = run(*train, f"--config lung.json --model_dir whole/run --max_steps {STEPS}")
    assert status == 0 and len(set(given)) == STEPS * per_step
    states, log = whole = left_in("whole/run", "last.pt", "run.model")
    assert states[0]["step"] == STEPS == len(log) and {"critic", "generator", "epoch"} <= log[-1].keys()
    for how in (None, number):
        words = f"--config lung.json --model_dir {how}/run"
        assert in_halves(run, train, words, per_step, how, capsys) == given
        assert differences(left_in(f"{how}/run", "last.pt", "run.model"), whole) == []


def test_a_residual_run_of_before_enlarge_taps_goes_on_with_its_own_filter_and_draws_the_same(cohort, run, capsys):
    settings = {"loss_type": "rpgan", "gan_type": "residual", "num_epochs": 20}
    gan_toy.write_config(Path("four.json"), ["lung"], enlarge_taps=4, **settings)
    gan_toy.write_config(Path("lung.json"), ["lung"], **settings)
    train = histopathology_gan, "critic_step"
    assert run(*train, "--config four.json --model_dir old --max_steps 2")[0] == 0
    config, state = json.loads(Path("old/config.json").read_text()), load_checkpoint("old/old.model")[0]
    Path("old/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "enlarge_taps"}))
    assert run(*train, "--config lung.json --model_dir old --max_steps 3")[0] == 2
    assert "enlarge_taps" in capsys.readouterr().err
    assert run(*train, "--config four.json --model_dir old --max_steps 3")[0] == 0

    tiles = {}
    for taps in (None, 4, 6):
        state["generator_args"] = {k: v for k, v in state["generator_args"].items() if k != "enlarge_taps"}
        state["generator_args"] |= {} if taps is None else {"enlarge_taps": taps}
        save_checkpoint("some.model", "gan", state)
        tiles[taps] = next(generate_tiles(open_gan("some.model", torch.device("cpu")).generator, 4, 1))
    assert torch.equal(tiles[None], tiles[4]) and not torch.allclose(tiles[6], tiles[4], atol=1e-4)


def test_a_growing_run_of_before_its_critic_saw_more_is_refused_by_name_and_left_as_it_was(cohort, run, capsys):
    gan_toy.write_config(Path("grown.json"), ["lung"], loss_type="rpgan", num_epochs=20, **EVERYTHING | CRITIC_ALONE)
    train = histopathology_gan, "critic_step"
    assert run(*train, "--config grown.json --model_dir old --max_steps 2")[0] == 0
    state = load_checkpoint("old/last.pt")[0]
    state["critic"] = {k: v for k, v in state["critic"].items() if "apart_from_rgb" not in k}
    save_checkpoint("old/last.pt", "gan_training", state)
    before = Path("old/last.pt").read_bytes()
    capsys.readouterr()
    assert run(*train, "--config grown.json --model_dir old --max_steps 3")[0] == 2
    assert "old: its critic has other layers" in capsys.readouterr().err
    assert Path("old/last.pt").read_bytes() == before
    assert run(*train, "--config grown.json --model_dir old --max_steps 1 --restart")[0] == 0


def test_a_filter_that_a_dcgan_does_not_have_does_not_part_it_from_its_run(cohort, run):
    train = histopathology_gan, "critic_step"
    for taps, steps in ((4, 2), (6, 3)):
        gan_toy.write_config(Path("lung.json"), ["lung"], loss_type="wgan", enlarge_taps=taps)
        assert run(*train, f"--config lung.json --model_dir old --max_steps {steps}")[0] == 0


@pytest.mark.parametrize("kind", VAES)
def test_a_beta_vaes_hundred_steps_are_fifty_and_fifty(tmp_path, run, kind, capsys):
    number, settings = VAES[kind]
    settings |= {"n_donors": 30, "n_genes": 100, "batch_size": 16}
    config, train = betavae_cohort.write_cohort(tmp_path, **settings), (betaVAE_training, "beta_vae_loss")

    def all_of(run):
        return *left_in(run, "last.pt", "best.pt"), json.loads((run / "metrics.json").read_text())["test"]

    status, given = run(*train, f"--config {config} --save_dir {tmp_path}/whole --max_steps {STEPS}")
    states, log, _ = whole = all_of(tmp_path / "whole")
    assert status == 0 and states[0]["step"] == STEPS == len([line for line in log if "batch_kl" in line])
    assert STEPS <= len(set(given)) == len(given)  # with those of validation
    for how in (None, number):
        words = f"--config {config} --save_dir {tmp_path}/{how}"
        assert in_halves(run, train, words, 1, how, capsys) == given
        assert differences(all_of(tmp_path / f"{how}"), whole) == []
