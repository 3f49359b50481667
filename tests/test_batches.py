"""Where the tiles of a training lie: the same batches from the disk, from memory, from a device."""

import gan_toy
import pytest
import torch

from common import distributed
from common.config import GANSettings, load_config
from common.distributed import Ranks
from common.errors import InputError
from datasets.cohort import open_cohort
from models.gan_settings import resolve_gan_settings
from models.networks import build_generator, generator_args
from models.step_draws import StepDraws
from sources import batches
from sources.batches import Batches, place_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_batches_are_the_same_wherever_the_tiles_lie(tmp_path, monkeypatch):
    gan_toy.make_cohort(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = {}
    for where in ("none", "ram", "gpu"):
        monkeypatch.setattr(batches, "place_of", lambda *_, where=where: where)
        cfg = load_config(GANSettings, "lung.json", turns=True, loss_type="wgangpvae")
        resolve_gan_settings(cfg)
        cohort = open_cohort(cfg, ("train",))
        conditions = torch.randn(len(cohort.slides), 12, generator=torch.Generator().manual_seed(0))
        source = Batches(cohort, conditions, cfg, CPU, 2, 6)  # steps 3 to 6
        found[where] = [source.take(step, 0, 16) for step in range(3, 7)]
        if where == "ram":  # read once, then without the file
            assert (cohort.tiles._cached[source.indices(5)]).all()
        with pytest.raises(StopIteration):
            source.take(7, 0, 16)
    for where in ("ram", "gpu"):
        for (a, x), (b, y) in zip(found["none"], found[where], strict=True):
            assert torch.equal(a, b) and a.is_contiguous() == b.is_contiguous()
            assert torch.equal(x.c, y.c) and torch.equal(x.keep, y.keep) and torch.equal(x.patients, y.patients)
    (a, _), (b, _) = found["none"][:2]
    assert not torch.equal(a, b) and a.min() >= -1 and a.max() <= 1
    halved, _ = Batches(cohort, conditions, cfg, CPU, 2, 6).take(3, 0, 8)  # each pixel the mean of four
    assert torch.allclose(halved, a.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5)), atol=1e-6)


@pytest.mark.parametrize(
    ("cache", "device", "gpu", "ram", "where"),
    [
        ("auto", GPU, 100, 100, "gpu"),
        ("auto", GPU, 20, 100, "ram"),
        ("auto", GPU, 20, 40, "none"),
        ("auto", CPU, 0, 100, "ram"),
        ("gpu", GPU, 20, 20, "gpu"),
        ("none", GPU, 100, 100, "none"),
        ("ram", CPU, 0, 1, "ram"),
    ],
)
def test_tiles_are_kept_where_they_fit(monkeypatch, cache, device, gpu, ram, where):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gpu * 3 * 64, 0))
    monkeypatch.setattr(batches, "free_memory", lambda: ram * 3 * 64.0)
    assert place_of(cache, 15, 8, device) == where  # of 20 on a GPU 40 % are 8; a quarter of 40 are 10


def test_tiles_that_do_not_fit_a_gpu_are_refused_with_their_size(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 0))
    with pytest.raises(InputError, match=r"10000 tiles of 256 px take 2.0 GB.*1.0 GB are free; use cache = auto"):
        place_of("gpu", 10000, 256, GPU)
    with pytest.raises(InputError, match="cache = gpu, but the run is on cpu"):
        place_of("gpu", 10, 8, CPU)


def test_free_memory_is_that_of_this_machine():
    assert 1e8 < batches.free_memory() < 1e14


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_ranks_are_the_batch_of_one(tmp_path, monkeypatch, world):
    gan_toy.make_cohort(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = load_config(GANSettings, "lung.json", turns=True, loss_type="wgangpvae", gan_type="residual", batch_size=7)
    resolve_gan_settings(cfg)
    cohort = open_cohort(cfg, ("train",))
    conditions = torch.randn(len(cohort.slides), 12, generator=torch.Generator().manual_seed(0))
    generator = build_generator(generator_args(cfg, 12))

    def taken(ranks):
        monkeypatch.setattr(distributed, "_here", ranks)
        source = Batches(cohort, conditions, cfg, CPU, 0, 3)
        draws = StepDraws(cfg, source.rows, CPU)
        for step in (1, 2, 3):
            real, shown = source.take(step, 0, 16)
            place = (step, 0)
            drawn = [draws.noise(generator, *place), draws.epsilon(*place), draws.signs(real, *place).transpose(0, 1)]
            yield [real, shown.c, shown.keep, shown.patients, *drawn, draws.augmented(real, 0.5, "real", *place)]

    whole = list(taken(Ranks()))
    shares = [list(taken(Ranks(k, world))) for k in range(world)]
    for step, parts in enumerate(whole):
        assert {len(part) for part in parts} == {7}
        for i, part in enumerate(parts):
            assert torch.equal(part, torch.cat([share[step][i] for share in shares])), i
