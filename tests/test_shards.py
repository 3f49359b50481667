"""Two processes make the files and the numbers of one: generation, FID, evaluation; faults and signals end both."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gan_toy
import many_ranks
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate_conditioning
import fid
import generate_tissue_images
import histopathology_gan
from common.checkpoint import load_checkpoint, resolve_checkpoint
from common.distributed import Ranks
from datasets.expression import read_expression, write_expression
from models.generate import CHUNK, cut_at_chunks, whole_chunks
from sources import division
from sources.gan import GANSource, open_gan

PATIENT = "GTEX-D03-0625.svs"  # of split test
GENERATE = "--checkpoint checkpoints/rna-gan_lung.model --config lung.json"
SMALL = "--extractor_side 32 --sample_size 30 --iterations 2 --batch_size 4 --seed 99 --device cpu"
EVALUATE = f"{GENERATE} --tiles 8 --sampling_seeds 2 --re_pairings 99 --extractor_side 32"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 donors of a lung with 6 tiles each, a GAN, an RNA-GAN, one of the published form, pictures, a shift."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cohort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan_toy, "N_DONORS", 60)
        patch.setattr(gan_toy, "TISSUES", ("lung",))
        patch.chdir(folder)
        gan_toy.make_cohort(folder)
        table = read_expression("data/lung.csv")
        table.obs = table.obs.assign(assigned_split=["test"] * 12 + ["val"] * 8 + ["train"] * 40)
        write_expression(table, Path("data/lung.csv"))
        gan_toy.write_vae(folder / "checkpoints" / "betavae_tissues", [table])
        gan_toy.train_two("wganvae", steps=3)
        gan_toy.write_config(folder / "published.json", ["lung"], standardise="batch", noise="uniform")
        words = "--config published.json --model_dir checkpoints/published --loss_type wganvae --max_steps 3"
        assert gan_toy.run(histopathology_gan, words) == 0
        state, digest = load_checkpoint(resolve_checkpoint("checkpoints/betavae_tissues.pt"), "betavae")
        np.savez("shift.npz", shift=2 * state["latent"]["std"].numpy(), vae_digest=digest)
        Path("drawn").mkdir()
        rng = np.random.default_rng(0)
        for i in range(70):
            tile = rng.normal(150, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(tile).save(f"drawn/{i:02d}.png")
    return folder


@pytest.fixture
def cohort(made, tmp_path, monkeypatch):
    gan_toy.copy_here(made, tmp_path, monkeypatch)
    torch.set_num_threads(1)
    return tmp_path


def start(line, *before):
    """Start a command of the toolkit as a user would; its environment is the tests'."""
    script, *words = line.split()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK_TIMEOUT": "60"}
    return subprocess.Popen([sys.executable, *before, str(many_ranks.ROOT / script), *words], env=environment, **pipes)


def finish(process):
    """Return (exit status, stdout, lines on stderr)."""
    try:
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, out, err.splitlines()


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def tiles_in(folder):
    return len(list(Path(folder).glob("seed*.png")))


# ---- How work is divided ----


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_together_have_what_one_has_in_its_order(monkeypatch, world):
    units = [np.full((k % 3 + 1, 2), k) for k in range(5)]
    said = []
    for rank in range(world):
        ranks = Ranks(rank, world)
        monkeypatch.setattr(Ranks, "sum", lambda self, x: x)
        monkeypatch.setattr(Ranks, "gather", lambda self, x: [x])
        monkeypatch.setattr(division, "current", lambda ranks=ranks: ranks)
        if units[ranks.share(5)]:
            said.append(division.divided(["x"], units, lambda mine: ({"x": unit * 1.0} for unit in mine))["x"])
    assert np.array_equal(np.concatenate(said), np.concatenate(units))


def test_pieces_of_tiles_end_where_chunks_do():
    stretches = [(0, 3), (5, 40), (48, 64), (70, 71)]
    pieces = cut_at_chunks(stretches)
    assert pieces == [(0, 3), (5, 16), (16, 32), (32, 40), (48, 64), (70, 71)]
    assert whole_chunks(5, 30) == range(0, 48) and whole_chunks(CHUNK, CHUNK) == range(CHUNK, 2 * CHUNK)


@pytest.mark.parametrize("run", ["rna-gan_lung", "published"])
def test_a_tile_does_not_depend_on_how_many_are_drawn_with_it(cohort, run):
    gan = open_gan(f"checkpoints/{run}")
    profiles = gan.profiles(None, read_expression("data/lung.csv"))
    names = profiles.held_out("test")
    source = GANSource(gan, profiles.conditions(names), names=names)
    whole = np.concatenate(list(source.batches(40, 1)))
    for first, n in ((0, 9), (9, 20), (30, 1), (35, 5)):
        assert np.array_equal(np.concatenate(list(source.batches(n, 1, start=first))), whole[first : first + n])


# ---- Generation ----


def test_two_processes_make_the_files_of_one(cohort):
    words = f"{GENERATE} --checkpoint2 checkpoints/gan_lung.model --patient1 {PATIENT} --sample_size 37 --batch_size 5"
    words += " --sweep shift.npz --alphas -1,0"
    assert gan_toy.run(generate_tissue_images, f"{words} --out one") == 0
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    status, out, err = finish(start(f"generate_tissue_images.py {words} --out two", *launcher))
    assert status == 0, err
    one, two = contents("one"), contents("two")
    assert two == one and {"grid.png", "manifest.json", "comparison.png", "sweep.png"} < one.keys()
    assert len(one) == 37 + 3 + 37 + 2 + gan_toy.TILES + 2 + 1
    assert out.count("two: 37 tiles, seed 99") == 1 and "rank" not in out


def test_what_one_process_began_two_go_on_with(cohort):
    words = "--checkpoint checkpoints/published --config lung.json"  # under its rule a tile depends on its chunk
    assert gan_toy.run(generate_tissue_images, f"{words} --sample_size 50 --out whole") == 0
    assert gan_toy.run(generate_tissue_images, f"{words} --sample_size 20 --out parts") == 0
    for k in (0, 7, 8):
        Path(f"parts/seed99_{k:05d}.png").unlink()
    Path("parts/.seed99_00030.png.999999999.partial").write_bytes(b"half")
    kept = Path("parts/seed99_00002.png").stat().st_mtime_ns
    status, _, err = finish(start(f"generate_tissue_images.py {words} --sample_size 50 --out parts --parallel 2"))
    assert status == 0, err
    assert contents("parts") == contents("whole") and Path("parts/seed99_00002.png").stat().st_mtime_ns == kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_ranks_and_leaves_no_half_a_file(cohort, number):
    words = f"{GENERATE} --patient1 {PATIENT} --out"
    process = start(f"generate_tissue_images.py {words} parts --sample_size 20000 --parallel 2")
    until = time.monotonic() + 120
    while tiles_in("parts") < 20 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == 75 and len(err) == 1 and "type the same command again to go on" in err[0], err
    assert 20 <= tiles_in("parts") < 20000 and not list(Path("parts").glob(".*"))
    for path in Path("parts").glob("seed*.png"):
        if int(path.stem.split("_")[1]) >= 40:  # the first are made whole by one process
            path.unlink()
    assert gan_toy.run(generate_tissue_images, f"{words} parts --sample_size 40") == 0
    assert gan_toy.run(generate_tissue_images, f"{words} whole --sample_size 40") == 0
    assert contents("parts") == contents("whole")


def test_a_killed_rank_is_named_and_the_others_leave(cohort):
    words = f"generate_tissue_images.py {GENERATE} --patient1 {PATIENT} --out parts --sample_size 20000".split()
    started = many_ranks.start([many_ranks.ROOT / words[0], *words[1:]], 2, cohort)
    until = time.monotonic() + 120
    while tiles_in("parts") < 20 and time.monotonic() < until:
        time.sleep(0.02)
    started[1].kill()
    status, _, err = many_ranks.finish(started)
    said = "".join(err).splitlines()
    assert status[0] == 75 and len(said) == 1 and "rank 1 of 2 is gone" in said[0], err
    assert "type the same command again to go on" in said[0]


def test_bad_input_ends_both_with_one_line(cohort):
    words = f"generate_tissue_images.py {GENERATE} --patient1 GTEX-D99-0625.svs --out parts --parallel 2"
    status, _, err = finish(start(words))
    assert status == 2 and len(err) == 1 and "nearest: GTEX-D" in err[0] and "rank" not in err[0], err


# ---- FID ----


def test_two_processes_measure_the_distances_of_one(cohort):
    assert gan_toy.run(fid, f"--checkpoint drawn --config lung.json --save_statistics saved --out first {SMALL}") == 0
    words = f"--matrix lung=real:lung.json patient=real:lung.json:{PATIENT} gan=checkpoints/gan_lung "
    words += f"rna=checkpoints/rna-gan_lung published=checkpoints/published drawn=drawn saved=saved/drawn.npz {SMALL}"
    assert gan_toy.run(fid, f"{words} --out one --feature_cache kept/one") == 0
    status, out, err = finish(start(f"fid.py {words} --out two --feature_cache kept/two --parallel 2"))
    assert status == 0, err
    assert contents("two") == contents("one") and contents("kept/two") == contents("kept/one")
    assert out.count("two/metrics.json") == 1
    status, out, err = finish(start(f"fid.py {words} --out two --feature_cache kept/one --parallel 2"))
    assert status == 0 and "rna: features of 60 tiles from kept/one" in out, err
    assert contents("two") == contents("one")


def test_a_damaged_picture_in_one_ranks_share_ends_both_with_one_line(cohort):
    for k in range(60, 70):
        Path(f"drawn/{k}.png").write_bytes(Path(f"drawn/{k}.png").read_bytes()[:200])
    words = f"fid.py --checkpoint drawn --config lung.json {SMALL} --sample_size 70 --iterations 1 --out out"
    began = time.monotonic()
    statuses, _, err = many_ranks.run([many_ranks.ROOT / words.split()[0], *words.split()[1:]], 2, cohort)
    said = [line for line in "".join(err).splitlines() if not line.startswith("warning")]
    assert statuses == [2, 2] and len(said) == 1, (statuses, err)
    assert "rank 1: drawn/6" in said[0] and time.monotonic() - began < 60 and not Path("out/metrics.json").exists()


# ---- Evaluation ----


def test_two_processes_evaluate_as_one(cohort):
    assert gan_toy.run(evaluate_conditioning, f"{EVALUATE} --shift shift.npz --out one --device cpu") == 0
    words = f"evaluate_conditioning.py {EVALUATE} --shift shift.npz --out two --device cpu --parallel 2"
    status, out, err = finish(start(words))
    assert status == 0, err
    assert contents("two") == contents("one") and len(out.splitlines()) == 1
    assert json.loads(Path("two/metrics.json").read_text())["patients"] == 12
