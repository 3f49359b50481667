"""A batch in several passes: the whole batch's result where there is no batch norm, and what happens without memory."""

import json
from pathlib import Path

import gan_toy
import many_ranks
import pytest
import torch
from betavae_cohort import write_cohort

import betaVAE_training
import histopathology_gan
import models.passes
from common import distributed
from common.checkpoint import content_digest, load_checkpoint
from common.config import BetaVAESettings, GANSettings
from common.distributed import Ranks
from common.errors import InputError
from models.betavae_training import BetaVAETraining
from models.gan_settings import resolve_gan_settings
from models.gan_training import GANTraining
from models.memory import moments_to_come
from models.passes import Passes, in_passes, pieces
from models.played_step import gan_step, unchanged, vae_step

SEEING = {"gan_type": "residual", "batch_size": 6, "cond_dropout": 0.4, "mismatched_weight": 1.0, "cond_jitter": 0.3}
SEEING |= {"turns": True, "augment": 0.5, "penalty_every": 2, "log_interval": 1}
SMALL = """
import importlib, os, sys, torch
from common.errors import run_command
from models import passes, played_step

rank, least, when, name, *words = int(os.environ["RANK"]), int(sys.argv[1]), *sys.argv[2:]
module = importlib.import_module(name)
passes.TRIED_FIRST = ("cpu",)
loss, step, played, taken = played_step.beta_vae_loss, played_step.critic_step, [], []

def too_small(tries, rows, fits):
    tries.append(rows)
    if rank == 1 and not fits:
        raise torch.OutOfMemoryError("CUDA out of memory")

def small_loss(x, *args, **more):
    if not x.is_meta:  # the estimate that is told at the start takes no memory
        too_small(played, len(x), len(x) <= least)
    return loss(x, *args, **more)

def small_step(critic, optimizer, loss, real, *args, **more):
    if not real.is_meta:
        too_small(played, critic.passes, critic.passes >= least)
    return step(critic, optimizer, loss, real, *args, **more)

def later(critic, *args, **more):
    too_small(taken, critic.passes, when != "later" or len(taken) < 2)
    return step(critic, *args, **more)

played_step.beta_vae_loss, played_step.critic_step = small_loss, small_step
module.critic_step = later
status = run_command(module.main, module.build_parser(), words)
with open(f"played_{rank}", "w") as file:
    file.write(" ".join(map(str, played)))
sys.exit(status)
"""
RUNS = {
    "exact": ("rpganvae", {}),
    "difference": ("rpganvae", {"penalty_form": "difference"}),
    "slope": ("wgangpvae", {}),
    "growing": ("rpganvae", {"first_side": 8, "grow_images": 24, "critic_steps": 2}),
}


made, cohort = gan_toy.made, gan_toy.cohort


def log_of(run):
    lines = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    return [gan_toy.repeatable(line) for line in lines]


def assert_same_losses(a, b):
    for x, y in zip(log_of(a), [line for line in log_of(b) if "micro_batch" not in line], strict=True):
        assert x == pytest.approx(y, rel=1e-5, abs=1e-5)


def train(words):
    return gan_toy.run(histopathology_gan, f"--config c.json --max_steps 4 {words}")


@pytest.mark.parametrize("name", RUNS)
def test_passes_make_the_whole_batch(cohort, name):
    loss, changes = RUNS[name]
    gan_toy.write_config(Path("c.json"), ["lung"], loss_type=loss, **SEEING | changes)
    assert train("--model_dir whole") == 0
    for size in (2, 4, 1):  # 2 + 2 + 2, 3 + 3, one by one
        assert train(f"--model_dir parts_{size} --micro_batch {size}") == 0
        assert_same_losses("whole", f"parts_{size}")
    assert len(log_of("whole")) == 4


@pytest.mark.parametrize("where", ["critic_step", "generator_step"])
def test_without_memory_passes_are_halved_said_once_and_the_batch_stays(cohort, monkeypatch, capsys, where):
    gan_toy.write_config(Path("c.json"), ["lung"], loss_type="rpganvae", **SEEING)
    assert train("--model_dir whole") == 0
    real, calls = getattr(histopathology_gan, where), []

    def small_gpu(critic, *args, **kwargs):
        calls.append(critic.passes)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(critic, *args, **kwargs)

    monkeypatch.setattr(histopathology_gan, where, small_gpu)
    capsys.readouterr()
    assert train("--model_dir parts") == 0
    assert calls == [1, 1, 2, 2, 2]
    said = [line for line in capsys.readouterr().out.splitlines() if "GPU's memory" in line]
    assert said == [
        "parts: step 2: the GPU's memory is too small for 6 rows in a pass: going on with --micro_batch 3; the batch "
        "is still 6"
    ]
    assert [line for line in log_of("parts") if "micro_batch" in line] == [{"step": 2, "micro_batch": 3}]
    assert_same_losses("whole", "parts")
    monkeypatch.setattr(histopathology_gan, where, real)
    assert train("--model_dir parts --micro_batch 2 --max_steps 5") == 0, "without batch norm it is free to change"


def test_a_run_with_batch_norm_keeps_its_passes(cohort, capsys):
    gan_toy.write_config(Path("c.json"), ["lung"], loss_type="wgan", batch_size=6)
    assert train("--model_dir run --micro_batch 3") == 0
    assert train("--model_dir run --max_steps 5") == 2
    assert "micro_batch (3 there, 0 now)" in capsys.readouterr().err


def test_a_beta_vae_too(tmp_path, monkeypatch, capsys):
    config = write_cohort(tmp_path, n_donors=30, n_genes=60, num_epochs=1, batch_size=20)
    real, calls = betaVAE_training.beta_vae_loss, []

    def small_gpu(x, *args, **kwargs):
        calls.append(len(x))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(x, *args, **kwargs)

    monkeypatch.setattr(betaVAE_training, "beta_vae_loss", small_gpu)
    assert gan_toy.run(betaVAE_training, f"--config {config}") == 0
    assert calls[:3] == [20, 10, 10]
    assert capsys.readouterr().out.count("going on with --micro_batch 10; the batch is still 20") == 1
    assert load_checkpoint(tmp_path / "run" / "last.pt")[0]["epoch"] == 1


def test_passes_that_cannot_be_smaller_or_must_be_agreed_are_refused(monkeypatch):
    def update(passes):
        for trial in passes.trials(8):
            with trial:
                raise torch.OutOfMemoryError

    passes = Passes(0)
    with pytest.raises(InputError, match=r"too small for 1 rows in a pass; use a smaller batch_size"):
        update(passes)
    assert passes.size == 1
    with pytest.raises(InputError, match="too small for 8 rows"):
        update(Passes(0, least=8))
    with pytest.raises(InputError, match="too small for 4 rows"):  # no two passes of 3 rows or more can be made of 8
        update(Passes(0, least=3))
    monkeypatch.setattr(distributed, "_here", Ranks(0, 2))
    with pytest.raises(InputError, match=r"of a process; type the command again with --micro_batch 2"):
        update(Passes(0))
    with pytest.raises(InputError, match="too small for 4 rows in a pass of a process; use a smaller batch_size"):
        update(Passes(0, least=8))  # penalty_per = batch


# ---- Several ranks ----


def two_ranks(folder, least, when, module, words):
    (folder / "job.py").write_text(SMALL)
    return many_ranks.run(["job.py", least, when, module, *words.split()], 2, folder)


def played(folder):
    return [[int(word) for word in (folder / f"played_{rank}").read_text().split()] for rank in (0, 1)]


def test_two_ranks_agree_on_what_the_smaller_gpu_holds_before_the_first_step(cohort):
    gan_toy.write_config(Path("c.json"), ["lung"], loss_type="rpganvae", **SEEING | {"batch_size": 8})
    assert train("--model_dir whole") == 0
    status, out, err = two_ranks(
        cohort, 3, "first", "histopathology_gan", "--config c.json --max_steps 4 --model_dir two"
    )
    assert status == [0, 0], err
    assert played(cohort) == [
        [1, 1, 2, 2, 4, 4],
        [1, 2, 4, 4],
    ]  # 4 rows a pass, 2, 1; two steps each where there is room
    said = [line for line in out[0].splitlines() if "GPU's memory" in line]
    assert said == [
        "two: step 1: the GPU's memory is too small for 2 rows in a pass of a process: going on with --micro_batch 1; "
        "the batch is still 8"
    ]
    assert [line for line in log_of("two") if "micro_batch" in line] == [{"step": 1, "micro_batch": 1}]
    assert_same_losses("whole", "two")


@pytest.mark.parametrize("which", ["gan", "vae"])
def test_steps_that_are_played_change_nothing(monkeypatch, which):
    """In one process that takes itself for rank 1 of 2, whose sums are its own."""
    monkeypatch.setattr(distributed, "_here", Ranks(1, 2))
    monkeypatch.setattr(Ranks, "sum", lambda self, x: x)
    monkeypatch.setattr(models.passes, "TRIED_FIRST", ("cpu",))
    cpu, played = torch.device("cpu"), []
    if which == "gan":  # batch norm in both networks, weights that are clipped, gradients that are not finite
        cfg = GANSettings(img_size=16, encoding_dims=8, step_channels=4, critic_norm="batch", batch_size=8)
        resolve_gan_settings(cfg)
        training = GANTraining(cfg, 0, cpu)
        networks, optimizers = (training.generator, training.critic), (training.optimizer_g, training.optimizer_c)
        training.generator.network.model[0][0].weight.data[0, 0] = float("inf")
        step, passes = gan_step(cfg, *networks, 0, cpu), Passes(0, *networks)
    else:
        cfg = BetaVAESettings(encoder_sizes=[12], decoder_sizes=[12], latent_dim=4, batch_size=8)
        training = BetaVAETraining(cfg, 20, cpu)
        networks, optimizers = (training.model,), (training.optimizer,)
        step, passes = vae_step(cfg, training.model, 8, cpu), Passes(0, least=2)
    weights = sum(w.numel() * w.element_size() for network in networks for w in network.parameters())
    assert moments_to_come(*optimizers) == 2 * weights

    def play(parts):
        assert distributed.current() is distributed.ALONE
        step(parts)
        played.append(parts)
        if len(played) == 2:
            raise torch.OutOfMemoryError

    before, random = content_digest(training.state()), torch.get_rng_state()
    with unchanged(*networks):
        passes.settle(8, play, cpu, held=1000)
    assert played == [[slice(4, 8)]] * 2 + [[slice(4, 6), slice(6, 8)]] * 2 and passes.size == 2
    assert content_digest(training.state()) == before and torch.equal(torch.get_rng_state(), random)
    assert all(w.grad is None and w.requires_grad for network in networks for w in network.parameters())


def test_two_ranks_of_a_beta_vae_too(cohort):
    config = write_cohort(cohort, n_donors=30, n_genes=60, num_epochs=1, batch_size=20)
    status, out, err = two_ranks(cohort, 5, "first", "betaVAE_training", f"--config {config} --save_dir two")
    assert status == [0, 0], err
    assert played(cohort) == [[10, 10, 5, 5, 5, 5], [10, 5, 5, 5, 5]]
    assert out[0].count("10 rows in a pass of a process: going on with --micro_batch 5; the batch is still 20") == 1


@pytest.mark.parametrize(
    ("least", "when", "remedy"),
    [
        (99, "first", "1 rows in a pass of a process; use a smaller batch_size"),
        (1, "later", "again with --micro_batch 2"),
    ],
)
def test_memory_that_is_too_small_for_two_ranks_is_one_line(cohort, least, when, remedy):
    gan_toy.write_config(Path("c.json"), ["lung"], loss_type="rpganvae", **SEEING | {"batch_size": 8})
    status, _, err = two_ranks(cohort, least, when, "histopathology_gan", "--config c.json --model_dir run")
    assert status == [2, 2], err
    (said,) = "".join(err).splitlines()
    assert "the GPU's memory is too small for" in said and remedy in said


@pytest.mark.parametrize(("n", "world", "size"), [(8, 1, 3), (9, 2, 2), (9, 2, 1), (7, 3, 1), (8, 4, 0), (5, 5, 1)])
def test_every_rank_takes_as_many_passes(monkeypatch, n, world, size):
    rows, counts = [], []
    for k in range(world):
        monkeypatch.setattr(distributed, "_here", Ranks(k, world))
        parts = Passes(size).of(n)
        counts.append(len(parts))
        rows += [i for part in parts for i in range(n)[part]]
        assert all(part.stop > part.start for part in parts)
    assert rows == list(range(n)) and len(set(counts)) == 1


def test_what_passes_hold_is_one_part_at_a_time():
    layer, held = torch.nn.Linear(4, 4), []

    def network(x, more):
        held.append(torch.is_grad_enabled())
        return layer(x).relu() + (0 if more is None else more)

    x, more = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    whole = in_passes(network, 1, x, more)
    parts = in_passes(network, 3, x, more)
    assert torch.equal(whole, parts) and len(held) == 4
    found = []
    for out in (whole, parts):
        x.grad = layer.weight.grad = None
        out.square().sum().backward()
        found.append((x.grad, layer.weight.grad))
    assert len(held) == 7, "each part is computed again in the backward pass"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert torch.equal(in_passes(network, 2, x, None), network(x, None))
    assert pieces(7, 3) == [slice(0, 3), slice(3, 5), slice(5, 7)]
