"""The line that shows a training, the memory's estimate, and the dry run's place: parts, without a training."""

import os
import subprocess
import sys
import termios

import pytest
import torch
from conftest import ROOT

from common import distributed, memory, progress
from common.config import BetaVAESettings, GANSettings
from common.distributed import Ranks
from common.errors import Stopped
from common.memory import PeakMemory, free_memory, free_on, in_use, peak_of_process
from common.progress import Progress
from common.rehearsal import rehearse
from common.words import bytes_in_words
from models.betavae import BetaVAE
from models.gan_settings import resolve_gan_settings
from models.memory import Allocations, MemoryNeed, allocations_of, gan_need, size_of, vae_need
from models.networks import build_critic, build_generator, generator_args

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_time_left_and_memory_are_one_line_and_the_logs_numbers(clock, capsys):
    bar = Progress("rna-gan", "images", 1000, 200, CPU)  # 200 were shown before this call
    clock[0] += 10
    bar.add(80)
    found = bar.report()
    assert found["seconds"] == 10 and found["images_per_second"] == 8
    assert found["seconds_left"] == pytest.approx((1000 - 280) / 8) and 0.02 < found["memory_gb"] < 100
    bar.show("critic 0.5")
    assert bar.line().startswith("rna-gan: 280 of 1,000 images, 8 images/s, 90 s left, ")
    assert bar.line().endswith("B, critic 0.5") and "\n" not in bar.line()
    clock[0] += 5
    bar.add(20)
    assert bar.report()["images_per_second"] == 4  # since the last report
    assert bar.report()["seconds_left"] == pytest.approx(700 / (100 / 15))  # at the rate of the last half minute
    bar.close()


def test_where_there_is_no_terminal_a_line_a_minute_is_printed(clock, capsys):
    bar = Progress("vae", "profiles", 10**6, 0, CPU)
    quiet = Progress("vae", "profiles", 10**6, 0, CPU, quiet=True)
    for _ in range(200):  # of a second each
        clock[0] += 1
        bar.add(10)
        quiet.add(10)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and said[0].startswith("vae: 610 of 1,000,000 profiles, 10 profiles/s, 27.8 h left")


def test_the_rate_forgets_how_slowly_it_began(clock):
    bar = Progress("run", "images", 10**6, 0, CPU)
    clock[0] += 600  # compiling
    bar.add(8)
    for _ in range(100):
        clock[0] += 1
        bar.add(8)
    assert bar.seconds_left() == pytest.approx((10**6 - 808) / 8)


def test_nothing_counted_leaves_no_time_left(clock):
    assert "seconds_left" not in Progress("run", "images", 10, 10, CPU).report()


def test_on_a_terminal_it_is_a_bar_with_rate_memory_and_losses(clock):
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    code = (
        "import torch, time; from common.progress import Progress\n"
        "bar = Progress('rna-gan', 'images', 1000, 0, torch.device('cpu'))\n"
        "for _ in range(10):\n    time.sleep(0.02); bar.show('critic 0.5'); bar.add(50)\n"
        "bar.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=slave, stdout=slave)
    os.close(slave)
    said = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0
    last = [line for line in said.split("\r") if line.strip()][-1]
    assert "rna-gan" in last and "500/1.00k" in last and "images/s" in last and "MB" in last and "critic 0.5" in last
    assert len(last) <= 120


def test_a_size_in_words():
    assert [bytes_in_words(s) for s in (12e6, 1.234e9, 21e9)] == ["12 MB", "1.23 GB", "21 GB"]


GROWS = """
import torch
from common.memory import in_use
cpu = torch.device("cpu")
before = in_use(cpu)
block = torch.ones(50_000_000)  # 200 MB
print(in_use(cpu) - before)
"""


def test_memory_in_use_grows_by_what_is_taken():
    words = [sys.executable, "-c", GROWS]  # this process may keep what earlier tests have freed
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 150e6 < float(done.stdout) < 300e6
    assert peak_of_process() >= in_use(CPU) - 1e8 and free_on(CPU) == pytest.approx(free_memory(), rel=0.5)


# ---- What a training will take ----


def gan_settings(**changes):
    cfg = GANSettings(**{"img_size": 32, "encoding_dims": 16, "step_channels": 8, "batch_size": 6} | changes)
    resolve_gan_settings(cfg)
    return cfg


def test_the_allocations_of_known_tensors():
    def step():
        a = torch.zeros(1000, dtype=torch.float32)  # 4000 bytes
        b = a.reshape(10, 100)  # a view: none
        c = b + 1
        c.mul_(2)  # in place: none
        del a, b
        return c.sum()

    found = allocations_of(step)
    assert (found.peak, found.largest) == (8000, 4000)
    with Allocations() as made:
        kept = torch.zeros(10, dtype=torch.float64)
        assert (made.alive, made.peak) == (80, 80)
        del kept
    assert (made.alive, made.peak) == (0, 80)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "wgan"},
        {"loss_type": "wgangpvae"},
        {"loss_type": "rpganvae", "gan_type": "residual", "augment": 0.5},
        {"loss_type": "rpgan", "gan_type": "residual", "penalty_form": "difference"},
        {"loss_type": "wgangp", "critic_norm": "batch"},
    ],
)
def test_a_step_without_content_takes_what_a_real_one_does(changes, monkeypatch):
    """The same step on the CPU, where tensors have content: the kernels allocate what the estimate says."""
    cfg = gan_settings(**changes)
    latent_dim = 12 if cfg.loss_type.endswith("vae") else 0
    if cfg.condition == "add":
        cfg.encoding_dims = 12
    on_meta = gan_need(cfg, latent_dim)
    assert on_meta.batch == 6
    monkeypatch.setattr("models.memory.META", CPU)
    assert gan_need(cfg, latent_dim).activations == pytest.approx(on_meta.activations, rel=0.2)
    args = generator_args(cfg, latent_dim)
    of_both = size_of(build_generator(args)) + size_of(build_critic(cfg, latent_dim))
    assert (on_meta.weights, on_meta.gradients, on_meta.optimiser) == (of_both, of_both, 2 * of_both)
    assert on_meta.average == size_of(build_generator(args))


def test_twice_the_batch_takes_twice_the_activations():
    one, two = (gan_need(gan_settings(loss_type="wgan", batch_size=n), 0) for n in (16, 32))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.15) and two.weights == one.weights


@pytest.mark.parametrize("gan_type", ["dcgan", "residual"])
def test_a_batch_in_passes_takes_less(gan_type):
    whole, parts = (
        gan_need(gan_settings(loss_type="wgangp", gan_type=gan_type, batch_size=32, micro_batch=n), 0) for n in (0, 8)
    )
    assert parts.activations < 0.7 * whole.activations and (parts.weights, parts.batch) == (whole.weights, 32)
    args = {"n_genes": 50, "encoder_sizes": [20], "decoder_sizes": [20], "latent_dim": 4}
    whole, parts = (vae_need(BetaVAESettings(batch_size=64, micro_batch=n), args, 1000) for n in (0, 16))
    assert parts.activations < 0.7 * whole.activations


def test_each_of_two_ranks_has_half_of_the_batch(monkeypatch):
    whole = gan_need(gan_settings(loss_type="wgan", batch_size=32), 0)
    monkeypatch.setattr(distributed, "_here", Ranks(1, 2))
    half = gan_need(gan_settings(loss_type="wgan", batch_size=32), 0)  # asks no other rank
    assert (whole.batch, half.batch) == (32, 16) and half.activations < 0.6 * whole.activations
    args = {"n_genes": 50, "encoder_sizes": [20], "decoder_sizes": [20], "latent_dim": 4}
    assert vae_need(BetaVAESettings(batch_size=2), args, 1000).batch == 1  # batch norm asks for two rows, of all ranks
    assert distributed.current() == Ranks(1, 2)


def test_the_need_of_a_vae():
    args = {"n_genes": 50, "encoder_sizes": [20], "decoder_sizes": [20], "latent_dim": 4}
    need = vae_need(BetaVAESettings(batch_size=8), args, 1000, data=1000)
    assert need.batch == 8 and vae_need(BetaVAESettings(batch_size=8), args, 5).batch == 5
    weights = size_of(BetaVAE(**args))
    assert need.weights == need.gradients == need.optimiser / 2 == weights
    assert need.total == 4 * weights + need.activations + 1000
    assert 8 * 50 * 4 * 3 < need.activations < 8 * 50 * 4 * 12  # input, its dropout, output and a few more


def test_the_line_and_the_warning_name_what_is_free_and_what_takes_less():
    need = MemoryNeed(int(1e9), int(1e9), int(2e9), int(4e8), int(3e9), int(1e8), 8, int(2e8), evaluation=int(1e9))
    assert need.total == 7.7e9
    line = need.line(CPU, 9e9)
    assert line.startswith("memory: about 7.7 GB of cpu, 9 GB are free (weights 1 GB, gradients 1 GB, optimiser 2 GB")
    assert need.warning(CPU, 8e9) is None
    assert "7.7 GB are needed and 7 GB are free on cpu" in need.warning(CPU, 7e9)
    assert need.warning(CPU, 7e9).endswith("use a smaller --micro_batch, or --batch_size")


# ---- The dry run's place ----


def test_a_dry_run_takes_a_step_and_resumes_beside_the_run_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    calls = []

    def train(folder, steps):
        calls.append((folder.name, folder.parent.parent, steps, (folder / "last.pt").exists()))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.pt").touch()

    rehearse(train, tmp_path / "checkpoints" / "gan", CPU, int(3e8), "two steps")
    assert calls == [
        ("gan", tmp_path / "checkpoints", 1, False),
        ("gan", tmp_path / "checkpoints", 2, True),
    ]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("dry run: two steps: all went well; memory ") and said.endswith("gan was not touched")
    rehearse(train, tmp_path / "not" / "yet" / "there", CPU, 0, "two steps")  # nothing is made on the way
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def test_the_memory_that_a_dry_run_took_is_measured(tmp_path):
    code = (
        "import torch; from common.rehearsal import rehearse\n"
        "torch.ones(100_000_000)\n"  # 400 MB, before
        "rehearse(lambda *_: torch.ones(50_000_000), 'gan', torch.device('cpu'), 300_000_000, 'two steps')"
    )
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=paths, capture_output=True, text=True).stdout
    assert 190 < int(said.split()[8]) < 250 and " MB measured, 300 MB estimated" in said


def test_memory_taken_is_never_below_zero(monkeypatch):
    peak = PeakMemory(CPU)  # what was kept by this process may serve all that follows, and its peak be read low
    monkeypatch.setattr(memory, "peak_of_process", lambda: 0.0)
    assert peak.taken() == 0.0
    monkeypatch.setattr(memory, "peak_of_process", lambda: 1e12)
    assert 9e11 < peak.taken() < 1e12


def test_a_dry_run_that_fails_leaves_nothing_and_says_why(tmp_path):
    def fails(folder, steps):
        folder.mkdir(parents=True)
        raise ValueError("no tiles")

    def stops(folder, steps):
        raise Stopped(f"{folder}: everything is saved")

    with pytest.raises(ValueError, match="no tiles"):
        rehearse(fails, tmp_path / "gan", CPU, 0, "")
    with pytest.raises(Stopped, match="dry run: stopped by a signal; nothing of it is kept"):
        rehearse(stops, tmp_path / "gan", CPU, 0, "")
    assert list(tmp_path.iterdir()) == []
