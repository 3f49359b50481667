"""What the benchmarks share: sides that take turns, peaks of memory, a training step; scaling; FID's draws."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import full_table  # noqa: E402
import scaling  # noqa: E402
import turns  # noqa: E402
from steps import GANStep, gan_settings  # noqa: E402

from datasets.matrices import read_matrix  # noqa: E402

SIDES = """
import os, sys
from benchmarks.turns import serve, take_turns
if "--only" not in sys.argv:
    print(take_turns(["good", "bad"], 1))
elif sys.argv[-1] == "good":
    print("good is", os.getpid(), file=sys.stderr, flush=True)
    serve(lambda: {"x": 1})
else:
    serve(lambda: {BAD})
"""


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    """Leave the number of threads as the other tests have it."""
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


def take_turns_of(tmp_path, bad):
    script = tmp_path / "sides.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + SIDES.replace("{BAD}", bad))
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)


def test_sides_take_turns(tmp_path):
    done = take_turns_of(tmp_path, "{'x': 2}")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].count("'peak_rss_gb'") == 4, done.stderr


@pytest.mark.parametrize(("bad", "words"), [("sys.exit(3)", "status 3"), ("print('hello')", "'hello")])
def test_a_side_that_fails_is_named_and_the_other_ended(tmp_path, bad, words):
    done = take_turns_of(tmp_path, bad)
    assert done.returncode == 1 and "side bad" in done.stderr and words in done.stderr
    other = next(line.split()[-1] for line in done.stderr.splitlines() if line.startswith("good is"))
    assert not Path(f"/proc/{other}").exists()


def test_the_peak_of_a_program_is_its_own():
    mine = bytearray(200 << 20)
    mine[::4096] = b"x" * len(mine[::4096])
    code = "import time; x = bytearray(64 << 20); time.sleep(0.5)"
    _, peak = turns.run_watched([sys.executable, "-c", code])
    assert 60 < peak < 150 and turns.peak_mb() > 200
    with pytest.raises(subprocess.CalledProcessError):
        turns.run_watched([sys.executable, "-c", "raise SystemExit(2)"])


def test_a_result_names_the_processor_and_its_bf16():
    found = turns.cpu()
    assert found["cpu"] and turns.has_bf16() == (found["avx512_bf16"] or found["amx_bf16"])


def test_a_point_of_scaling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "PER_SLIDE", 20)
    scaling.make_data(tmp_path, "tiles", [20, 40])
    words = ["--point", str(tmp_path), "tiles", "a batch, cache ram", "40"]
    scaling.main(scaling.build_parser().parse_args(words))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["s"] > 0 and found["peak_mb"] >= found["start_mb"] > 0


def test_the_step_has_the_rates_of_the_command():
    sizes = {"img_size": 32, "step_channels": 4, "encoding_dims": 16, "batch_size": 2, "lr_critic": 4e-3}
    step = GANStep(gan_settings(gan_type="residual", loss_type="rpgan", equalised=True, **sizes), torch.device("cpu"))
    rates = {group["lr"] for group in step.adam_c.param_groups}
    assert max(rates) == 4e-3 and min(rates) < 2e-3
    assert all(torch.isfinite(value) for value in step(1).values())


def test_the_reference_draws_other_tiles_each_time(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark_of_fid", ROOT / "benchmarks" / "fid.py")
    spec.loader.exec_module(fid := importlib.util.module_from_spec(spec))
    for name in (fid.LUNG, fid.OTHER):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    side, _ = fid.write_sides(tmp_path, 6, tmp_path)
    parts = [sorted(path.name for path in Path(part).iterdir()) for part in fid.parts_of(side, 2)]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert sorted(name for part in parts for name in part) == sorted(path.name for path in Path(side).iterdir())


def test_the_made_up_matrix_is_a_gct_of_tpm(tmp_path):
    wanted = [f"ENSG{i:011d}.3" for i in range(40)]
    size = full_table.make_matrix(tmp_path / "m_tpm.gct.gz", 120, 30, wanted)
    matrix = read_matrix(tmp_path / "m_tpm.gct.gz", wanted_gene=set(wanted).__contains__)
    assert matrix.genes == wanted and matrix.values.shape == (30, 40) and matrix.facts["format"] == "GCT"
    assert 0.3e6 < np.median(matrix.stats.totals) < 3e6 and not matrix.stats.whole
    assert size > 120 * 30 * 2 and matrix.values.min() >= 0
    donors = {name[:10] for name in matrix.samples}
    assert donors == {"GTEX-00000", "GTEX-00001"}
