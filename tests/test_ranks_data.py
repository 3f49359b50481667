"""What several ranks read, they read in turn; what they measure in training, they divide: as one process has it."""

import json
import os
import signal
import time
from pathlib import Path

import gan_toy
import many_ranks
import numpy as np
import pytest
import torch

import histopathology_gan
from common.config import GANSettings, load_config
from datasets.cohort import open_cohort
from models.features import Extractor
from models.gan_settings import resolve_gan_settings
from models.generate import CHUNK
from sources.gan import open_gan
from sources.watching import open_watch

COUNTED = """
import importlib, os, sys, time
from common.errors import run_command
from datasets import expression
parse = expression.read_reference_csv
def slow(path):
    with open("parsed", "a") as file:
        file.write(f"rank {os.environ['RANK']} {path}\\n")
    time.sleep(float(os.environ.get("SECONDS", 1)))  # the others would begin meanwhile
    return parse(path)
expression.read_reference_csv = slow
module = importlib.import_module(sys.argv[1])
sys.exit(run_command(module.main, module.build_parser(), sys.argv[2:]))
"""
MEASURE = """
import numpy as np, torch
from common.distributed import joined
from test_ranks_data import extracted, measured
counts = extracted()
with joined(torch.device("cpu")) as ranks:
    features, real = measured()
np.savez(f"rank_{ranks.rank}.npz", features=features, counts=counts, **({} if real is None else {"real": real}))
"""
WATCHED = {"eval_every": 8, "eval_tiles": 40, "feature_side": 32}


made, cohort = gan_toy.made, gan_toy.cohort


def extracted():
    """Let the extractor note how many tiles it is given at a time, from here on; return the list."""
    counts, extract = [], Extractor.__call__

    def counted(extractor, images):
        counts.append(len(images))
        return extract(extractor, images)

    Extractor.__call__ = counted
    return counts


def settings():
    cfg = load_config(GANSettings, "lung.json", loss_type="wgan")
    resolve_gan_settings(cfg)
    return cfg


def measured():
    """Return the features that a measurement of `run` has: of drawn tiles, and, on the first rank, of real ones."""
    watch = open_watch(settings(), None, torch.device("cpu"))
    return watch.drawn(open_gan("run").generator), watch.real


def log_of(run):
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]


def started(folder, *words, **environment):
    Path("job.py").write_text(COUNTED)
    return many_ranks.start(["job.py", *words], 2, folder, **environment)


def vae_config(path):
    sizes = {"encoder_sizes": [24], "decoder_sizes": [24], "latent_dim": 8, "batch_size": 8, "num_epochs": 1}
    path.write_text(json.dumps({"path_csv": ["data/lung.csv"], "save_dir": "vae", "device": "cpu"} | sizes))


@pytest.mark.parametrize("module", ["histopathology_gan", "betaVAE_training"])
def test_the_first_rank_parses_the_tables_for_all(cohort, module):
    Path("data/.lung.csv.cache").unlink(missing_ok=True)
    vae_config(Path("vae.json"))
    words = "--config vae.json" if module == "betaVAE_training" else "--config lung.json --loss_type wganvae"
    words += " --save_dir run --max_steps 1"
    status, _, err = many_ranks.finish(started(cohort, module, *words.split()))
    assert status == [0, 0], err
    assert Path("parsed").read_text() == "rank 0 data/lung.csv\n"


@pytest.mark.parametrize("module", ["histopathology_gan", "betaVAE_training"])
def test_a_table_that_is_wrong_ends_all_ranks_with_one_line(cohort, module):
    vae_config(Path("vae.json"))
    lines = Path("data/lung.csv").read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ",much"
    Path("data/lung.csv").write_text("\n".join(lines) + "\n")
    words = "--config vae.json" if module == "betaVAE_training" else "--config lung.json --loss_type wganvae"
    status, _, err = many_ranks.finish(started(cohort, module, *words.split(), "--save_dir", "run"))
    assert status == [2, 2] and err[1] == ""
    (said,) = err[0].splitlines()
    assert "data/lung.csv: line 4" in said and "'much'" in said
    assert Path("parsed").read_text() == "rank 0 data/lung.csv\n" and not Path("run").exists()


@pytest.mark.parametrize("who", [(0, 1), (0,)])
def test_a_signal_while_the_first_rank_parses_ends_both_with_one_line(cohort, who):
    Path("data/.lung.csv.cache").unlink(missing_ok=True)
    words = "histopathology_gan --config lung.json --loss_type wganvae --save_dir run"
    processes = started(cohort, *words.split(), SECONDS=200)
    end = time.monotonic() + 120
    while not Path("parsed").exists() and time.monotonic() < end:
        time.sleep(0.05)
    for rank in who:
        processes[rank].send_signal(signal.SIGTERM)
    status, _, err = many_ranks.finish(processes, 120)
    assert status == [75, 75], err
    (said,) = "".join(err).splitlines()
    assert "stopped by SIGTERM; type the same command again" in said and not Path("run").exists()


def test_two_ranks_measure_what_one_does_each_its_share(cohort):
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED)
    words = "--config lung.json --loss_type wgan --max_steps 2 --model_dir run"
    assert gan_toy.run(histopathology_gan, words) == 0
    Path("job.py").write_text(MEASURE)
    path = os.pathsep.join([str(many_ranks.ROOT), str(many_ranks.ROOT / "tests")])
    status, _, err = many_ranks.run(["job.py"], 2, cohort, PYTHONPATH=path)
    assert status == [0, 0], err
    one, real = measured()
    ranks = [np.load(f"rank_{k}.npz") for k in range(2)]
    assert all(np.array_equal(rank["features"], one) for rank in ranks)
    assert np.array_equal(ranks[0]["real"], real) and "real" not in ranks[1]
    assert len(one) == len(real) == 40
    # A blank tile, to learn the features' length; of three batches of real tiles and three drawn chunks, a share each.
    assert ranks[0]["counts"].tolist() == [1, 14, 13, CHUNK, CHUNK]
    assert ranks[1]["counts"].tolist() == [1, 13, 40 - 2 * CHUNK]


def test_a_measured_run_of_two_ranks_leaves_what_one_leaves(cohort):
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED)
    words = "--config lung.json --loss_type rpganvae --gan_type residual --max_steps 4 --model_dir"
    assert gan_toy.run(histopathology_gan, f"{words} one") == 0
    status, _, err = many_ranks.run_lines([f"histopathology_gan.py {words} two"], 2, cohort)
    assert status == [0, 0], err
    one, two = ([line for line in log_of(run) if "kid" in line] for run in ("one", "two"))
    assert [line["images"] for line in one] == [line["images"] for line in two] == [8, 16]
    for key in ("kid", "kid_best"):  # a pixel of weights that differ by 1e-6 may be rounded otherwise
        assert [line[key] for line in one] == pytest.approx([line[key] for line in two], rel=1e-3, abs=1e-4)
    names = [sorted(path.name for path in Path(run).rglob("*.*")) for run in ("one", "two")]
    assert names[0] == [name.replace("two", "one") for name in names[1]] and "best.model" in names[1]


def test_a_held_out_tile_that_is_damaged_ends_both_with_one_line(cohort):
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED)
    tar = open_cohort(settings(), ("val",)).tiles.stores[-1].path
    content = bytearray(tar.read_bytes())
    content[512:1024] = bytes(512)  # in the midst of the first tile
    tar.write_bytes(content)
    words = f"{many_ranks.ROOT}/histopathology_gan.py --config lung.json --loss_type wgan --model_dir run"
    status, _, err = many_ranks.run(words.split(), 2, cohort)
    assert status == [2, 2], err
    (said,) = "".join(err).splitlines()
    assert str(tar) in said and "is damaged" in said and not Path("run").exists()
