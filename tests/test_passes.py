"""A batch in several passes: the whole batch's result where there is no batch norm, and what happens without memory."""

import json
from pathlib import Path

import gan_toy
import pytest
import torch
from betavae_cohort import write_cohort

import betaVAE_training
import histopathology_gan
from common import distributed
from common.checkpoint import load_checkpoint
from common.distributed import Ranks
from common.errors import InputError
from models.passes import Passes, in_passes, pieces

SEEING = {"gan_type": "residual", "batch_size": 6, "cond_dropout": 0.4, "mismatched_weight": 1.0, "cond_jitter": 0.3}
SEEING |= {"turns": True, "augment": 0.5, "penalty_every": 2, "log_interval": 1}
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
    monkeypatch.setattr(distributed, "_here", Ranks(0, 2))
    with pytest.raises(InputError, match=r"of a process; type the command again with --micro_batch 2"):
        update(Passes(0))


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
