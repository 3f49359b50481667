"""`make demo` as make: finished stages are kept, a stage that stops is the one that goes on.

The commands are stand-ins here; how the real ones go on is tested with them.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
echo "$1 $2" >> calls
report() { mkdir -p demo/tiles/$1; printf "slide,status,reason\\n$2" > demo/tiles/$1/report.csv; }
case "$*" in  # each its own: make runs two at a time
    *"--out demo/tiles/lung"*) report lung;;
    *"--out demo/tiles/brain"*) report brain "GTEX-1,failed,planted\\n";;
esac
case "$*" in *"$(cat stop_at 2>/dev/null || echo nothing)"*) exit 75;; esac
case "$*" in *"slides demo/slides/brain --out demo/tiles"*) exit 3;; esac
"""


@pytest.fixture
def folder(tmp_path):
    """The Makefile in an empty folder whose .venv/bin/python notes what it was asked to run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / ".venv/.done").touch()
    return tmp_path


def make_demo(folder):
    """Run make demo; return its status, what it printed, and the commands that it ran this time."""
    (folder / "calls").write_text("")
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(["make", "demo"], cwd=folder, env=plain, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, (folder / "calls").read_text().splitlines()


def test_the_second_run_runs_nothing_and_names_the_report(folder):
    status, said, calls = make_demo(folder)
    assert status == 0, said
    assert calls[0] == "prepare_data.py demo" and calls[-1] == "paper_figures.py report"
    assert sum(call.startswith("histopathology_gan.py") for call in calls) == 4
    assert sum(call == "serve_quiz.py build" for call in calls) == 1
    assert said.rstrip().endswith(".venv/bin/python serve_quiz.py serve --quiz demo/quiz")
    again = make_demo(folder)
    assert again[0] == 0 and again[2] == [] and "demo/report.html" in again[1]


def test_a_stage_that_is_stopped_is_the_one_that_goes_on(folder):
    (folder / "stop_at").write_text("checkpoints/rna-gan_brain --image_dir")
    status, _, before = make_demo(folder)
    assert status != 0 and "paper_figures.py report" not in before
    finished = {p.name for p in (folder / "demo/.done").iterdir() if p.suffix != ".start"}
    assert "vae" in finished and "train_rna-gan_brain" not in finished
    (folder / "stop_at").unlink()
    status, _, after = make_demo(folder)
    assert status == 0 and after[-1] == "paper_figures.py report"
    assert not any(call.startswith(("prepare_data.py demo", "betaVAE_training.py")) for call in after)
    assert any(call.startswith("histopathology_gan.py") for call in after)


def test_a_slide_that_fails_unplanned_stops_the_demo(folder):
    python = folder / ".venv/bin/python"
    python.write_text(
        STAND_IN.replace("demo/tiles/lung/report.csv", "/dev/null").replace("GTEX-1,failed", "GTEX-1,done")
    )
    status, _, calls = make_demo(folder)
    assert status != 0 and "paper_figures.py report" not in calls
