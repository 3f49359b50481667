"""Logging to wandb: only when asked, offline where nobody is logged in, a resumed run under its first id."""

import sys
from pathlib import Path
from types import SimpleNamespace

import gan_toy
import pytest

import histopathology_gan
from common.run import Run


class FakeWandb:
    """Records what wandb is asked for."""

    def __init__(self):
        self.inits, self.lines, self.finished = [], [], 0

    def init(self, **arguments):
        self.inits.append(arguments)
        return SimpleNamespace(log=lambda values, step: self.lines.append((step, values)), finish=self._finish)

    def _finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def test_a_run_that_resumes_goes_on_under_its_id_and_another_has_another(fake, tmp_path):
    for folder in ("a", "a", "b"):
        with Run(tmp_path / folder, {"flag": ""}) as run:
            run.start_wandb({"flag": ""})
            run.log(3, {"loss": 1.5})
    first, again, other = fake.inits
    assert first["id"] == again["id"] != other["id"] and len(first["id"]) == 16
    assert (tmp_path / "a" / "wandb_id").read_text() == first["id"] + "\n"
    assert (first["resume"], first["mode"], first["name"]) == ("allow", "offline", "a")
    assert fake.lines == [(3, {"loss": 1.5})] * 3 and fake.finished == 3


def test_a_run_that_is_begun_again_has_a_new_id(fake, tmp_path):
    for restart in (False, True):
        with Run(tmp_path / "a", {}, restart=restart) as run:
            run.start_wandb({})
    assert fake.inits[0]["id"] != fake.inits[1]["id"]


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, "online"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_it_is_offline_unless_logged_in(fake, tmp_path, monkeypatch, variables, mode):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Run(tmp_path / "a", {}) as run:
        run.start_wandb({})
    assert fake.inits[0]["mode"] == mode


def test_a_training_asks_for_it_only_with_log_1_and_sends_what_the_log_says(fake, tmp_path, monkeypatch):
    cohort = gan_toy.make_cohort(tmp_path)
    monkeypatch.chdir(cohort)
    gan_toy.write_config(Path("lung.json"), ["lung"], log_interval=1)
    words = "--config lung.json --loss_type wgan --model_dir run"
    assert gan_toy.run(histopathology_gan, f"{words} --max_steps 1") == 0
    assert not fake.inits and not Path("run/wandb_id").exists()
    assert gan_toy.run(histopathology_gan, f"{words} --max_steps 2 --log 1") == 0
    assert gan_toy.run(histopathology_gan, f"{words} --max_steps 3 --log 1") == 0
    assert len({arguments["id"] for arguments in fake.inits}) == 1 and len(fake.inits) == 2
    assert [step for step, _ in fake.lines] == [2, 3]
    assert {"critic", "generator", "images_per_second", "seconds_left", "memory_gb"} <= fake.lines[0][1].keys()


def test_the_real_one_keeps_both_parts_offline_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        with Run(tmp_path / "a", {}) as run:
            run.start_wandb({})
            run.log(1, {"loss": 1.0})
    number = (tmp_path / "a" / "wandb_id").read_text().strip()
    parts = [path.name for path in tmp_path.glob("a/wandb/offline-run-*")]  # -1 at the end: of the same second
    assert len(parts) == 2 and all(f"-{number}" in name for name in parts)
