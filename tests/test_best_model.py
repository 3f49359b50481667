"""The best generator of a measured training is written with last.pt, as a part of that save, and is of its moment."""

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import gan_toy
import numpy as np
import pytest

import histopathology_gan as command
from common import run as run_module
from common.checkpoint import load_checkpoint
from common.run import Run
from sources import watching
from sources.gan_saves import Saves
from sources.watching import Watch

made = gan_toy.made
WATCHED = {"eval_every": 8, "eval_tiles": 6, "feature_side": 32}  # images; two steps of 4
KID = {8: 0.5, 16: 0.4, 24: 0.6, 32: 0.3, 40: 0.7}  # after so many images
LOOK = Watch.look
WORDS = "--config lung.json --loss_type wgan --max_steps"


@pytest.fixture
def cohort(made, tmp_path, monkeypatch):
    """A copy of the cohort as the working directory, where measurements find what `KID` says."""
    gan_toy.copy_here(made, tmp_path, monkeypatch)
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED)
    find(monkeypatch, KID.__getitem__)
    return tmp_path


class Crash(BaseException):
    """The process ends, whatever it is doing."""


def find(monkeypatch, kid):
    """Have the measurement after so many images find kid(images)."""

    def told(watch, run, step, average, state, *rest):
        monkeypatch.setattr(watching, "kernel_distance", lambda *_, **__: kid(state["images_seen"]))
        return LOOK(watch, run, step, average, state, *rest)

    monkeypatch.setattr(Watch, "look", told)


def save_after(monkeypatch, steps, dies_after=0):
    """Save after these steps, and at the end; die after step `dies_after`, which is not saved."""
    step, after_step = [0], Run.after_step

    def after(run, *_):
        step[0] += 1
        if step[0] == dies_after:
            raise Crash
        return after_step(run)[0], step[0] in steps

    monkeypatch.setattr(Run, "after_step", after)


def train(words):
    return gan_toy.run(command, f"{WORDS} {words}")


def bests(run):
    lines = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    return [line["kid_best"] for line in lines if "kid" in line]


def best_of(run):
    state, digest = load_checkpoint(f"{run}/best.model", "gan")
    return state["images_seen"], state["validation"]["kid"], digest


def step_of(run, name="last.pt"):
    return load_checkpoint(f"{run}/{name}", "gan_training")[0]["step"]


def ends_as_the_whole(run):
    """Finish the run, and another that was not cut: they are equal."""
    assert train(f"10 --model_dir {run}") == 0 and train("10 --model_dir whole") == 0
    assert bests(run) == bests("whole") == [0.5, 0.4, 0.4, 0.3, 0.3]
    assert best_of(run) == best_of("whole") and best_of(run)[:2] == (32, 0.3)


def test_a_crash_leaves_a_best_of_the_moment_of_last_pt(cohort, monkeypatch):
    with monkeypatch.context() as patch:
        save_after(patch, {5}, dies_after=9)
        with pytest.raises(Crash):
            train("10 --model_dir run")
    assert bests("run") == [0.5, 0.4, 0.4, 0.3] and step_of("run") == 5
    assert best_of("run")[:2] == (16, 0.4)  # that of 32 images was in memory alone
    ends_as_the_whole("run")


def test_a_crash_between_best_model_and_last_pt_changes_nothing(cohort, monkeypatch):
    save = Run.save

    def deadly(run, name, kind, state):
        if name == "last.pt" and state["step"] == 8:
            raise Crash
        return save(run, name, kind, state)

    with monkeypatch.context() as patch:
        save_after(patch, {5, 8})
        patch.setattr(Run, "save", deadly)
        with pytest.raises(Crash):
            train("10 --model_dir run")
    assert best_of("run")[:2] == (32, 0.3) and step_of("run") == 5
    ends_as_the_whole("run")


def test_a_run_that_goes_back_to_previous_pt_takes_up_the_best_of_that_moment(cohort, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        save_after(patch, {5})
        assert train("9 --model_dir run") == 0
    Path("run/last.pt").write_bytes(b"damaged")
    assert best_of("run")[:2] == (32, 0.3) and step_of("run", "previous.pt") == 5
    ends_as_the_whole("run")
    assert "Going on from run/previous.pt, after step 5" in capsys.readouterr().err


def test_a_run_that_goes_back_from_a_loss_forgets_the_best_since_its_save(cohort, monkeypatch):
    taken, real = [], command.critic_step

    def broken(*args, **kwargs):
        taken.append(1)
        losses = real(*args, **kwargs)
        return {k: v * math.nan for k, v in losses.items()} if len(taken) == 9 else losses

    find(monkeypatch, lambda images: KID[images] + (0.05 if len(taken) > 9 else 0))
    save_after(monkeypatch, {3})
    monkeypatch.setattr(command, "critic_step", broken)
    assert train("10 --model_dir run") == 0
    assert bests("run") == [0.5, 0.45, 0.45, 0.35, 0.35] and best_of("run")[:2] == (32, 0.35)


def test_of_a_best_that_comes_often_saving_takes_its_share_and_last_pt_comes_in_time(cohort, monkeypatch):
    """A step takes 20 s, each second one is the best so far; to write last.pt takes 30 s, a model 4 s."""
    now, spent, saves = [1000.0], [], []  # saves: when it began and what it took
    takes = {"last.pt": 30.0, "best.model": 4.0, "run.model": 4.0}
    write, save, after_step = run_module.save_checkpoint, Saves.save, Run.after_step

    def slow(path, *rest):
        now[0] += takes[path.name]
        spent.append(takes[path.name])
        return write(path, *rest)

    def saved(*args, **kwargs):
        began = now[0]
        whole = save(*args, **kwargs)
        saves.append((began, now[0] - began))
        return whole

    def after(run, *args):
        now[0] += 20
        return after_step(run, *args)

    find(monkeypatch, lambda images: 1 / images)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime))
    monkeypatch.setattr(run_module, "save_checkpoint", slow)
    monkeypatch.setattr(Run, "after_step", after)
    monkeypatch.setattr(Saves, "save", saved)
    monkeypatch.setattr(Watch, "drawn", lambda *_: np.zeros((6, 8)))
    monkeypatch.setattr(watching, "write_png", lambda *_: None)
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED, num_epochs=99)
    assert train("600 --model_dir run --save_every 600") == 0

    began, took = zip(*saves, strict=True)
    assert len(saves) >= 15 and max(np.diff([1000, *began])) <= 20 * sum(takes.values()) + 20  # and a step
    # The last save came at the end, due or not: neither it nor the one before is paid for yet.
    assert 0.04 < (sum(spent) - sum(took[-2:])) / (began[-2] - 1000) <= 0.05
    assert step_of("run") == 600 and best_of("run")[0] == 2400
