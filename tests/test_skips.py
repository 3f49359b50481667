"""Numbers that are not finite: never in a checkpoint; the run goes back, leaves the batch out, and the third time ends.

Each training is given NaN where it would compute a loss, or infinity where it has just changed a weight.
"""

import json
import math
import os
import signal

import gan_toy
import pytest
import torch
from betavae_cohort import write_cohort

import betaVAE_training
import histopathology_gan
from common import checkpoint
from common.checkpoint import first_non_finite, load_checkpoint
from common.errors import InputError
from common.run import Run
from common.skips import Skips

KINDS = {"gan": "gan_training", "vae": "betavae_training"}
STEPS = 12  # of each run


class Training:
    """One of the two trainings, in a folder of its own, and faults put into its steps."""

    def __init__(self, kind, folder, monkeypatch):
        self.kind, self.folder, self.patch = kind, folder, monkeypatch
        self.step, self.given = 0, []  # which step is being taken; the steps that were spoilt
        if kind == "gan":
            gan_toy.make_cohort(folder)
            gan_toy.write_config(folder / "lung.json", ["lung"], num_epochs=99, log_interval=1)
            self.module, self.words = histopathology_gan, "--config lung.json --loss_type wganvae --model_dir run"
        else:
            write_cohort(folder, n_donors=30, n_genes=60, batch_size=8, num_epochs=99)
            self.module, self.words = betaVAE_training, f"--config {folder}/vae.json"
        self.use()

    def use(self):
        """Count the steps of this training from now on."""
        self.patch.chdir(self.folder)
        name = "histopathology_gan.side_at" if self.kind == "gan" else "betaVAE_training.learning_rate"
        real = getattr(self.module, name.split(".")[1])

        def counted(number, *args):  # both are called at the beginning of a step
            self.step = number // 4 + 1 if self.kind == "gan" else number + 1
            return real(number, *args)

        self.patch.setattr(name, counted)

    def run(self, steps=STEPS, more=""):
        return gan_toy.run(self.module, f"{self.words} --max_steps {steps} {more}")

    def state(self, name="last.pt"):
        return load_checkpoint(self.folder / "run" / name)[0]

    def log(self):
        lines = (self.folder / "run" / "log.jsonl").read_text().splitlines()
        return [gan_toy.repeatable(json.loads(line)) for line in lines]

    def spoil_losses(self, *steps, once=False):
        """Make the loss of these steps NaN, each time that they are taken or only the first."""
        name = "generator_step" if self.kind == "gan" else "beta_vae_loss"
        real = getattr(self.module, name)

        def spoilt(*args, **kwargs):
            losses = real(*args, **kwargs)
            if self.step not in steps or (once and self.step in self.given) or not torch.is_grad_enabled():
                return losses
            self.given.append(self.step)
            return {key: value * math.nan for key, value in losses.items()}

        self.patch.setattr(self.module, name, spoilt)

    def spoil_weights(self, *steps):
        """Make a weight infinite by the update of these steps; their own losses are finite."""
        name = "generator_step" if self.kind == "gan" else "sum_gradients"
        real = getattr(self.module, name)

        def spoilt(first, *args, **kwargs):
            found = real(first, *args, **kwargs)
            if self.step in steps:
                self.given.append(self.step)
                weight = next(first.parameters()) if self.kind == "gan" else first.param_groups[0]["params"][0]
                weight.data.fill_(math.inf)
            return found

        self.patch.setattr(self.module, name, spoilt)


@pytest.fixture(params=KINDS)
def training(request, tmp_path, monkeypatch):
    saved = checkpoint.torch.save
    monkeypatch.setattr(checkpoint.torch, "save", lambda content, path: (refuse(content), saved(content, path)))
    return Training(request.param, tmp_path / "a", monkeypatch)


def refuse(content):
    assert first_non_finite(content) is None, "what is not finite came to a checkpoint"


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("once", [True, False])
def test_a_bad_batch_is_left_out_named_and_the_run_finishes(training, capsys, once):
    assert training.run(2) == 0
    training.spoil_losses(7, once=once)
    assert training.run() == 0
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if "going back to the last checkpoint" in line)
    what = " tile " if training.kind == "gan" else "GTEX-00"
    assert "at step 7;" in line and what in line and training.given == [7]
    kept = training.state()["skips"]["steps"]
    batch = 4 if training.kind == "gan" else 8
    assert training.state()["step"] == STEPS and list(kept) == ["7"] and len(kept["7"]) == batch
    assert [line["step"] for line in training.log() if "skipped" in line] == [7]
    assert next(line["skipped"] for line in training.log() if line["step"] == 7) == kept["7"]
    assert training.run(STEPS + 2) == 0 and training.state()["skips"]["steps"] == kept


def test_a_step_that_is_left_out_changes_no_weight(training):
    training.spoil_losses(7)
    states = []
    for steps in (6, 7, 8):
        assert training.run(steps) == 0
        parts = ("model", "generator", "critic", "average", "optimizer", "optimizer_g", "optimizer_c")
        states.append({key: value for key, value in training.state().items() if key in parts})
    assert len(states[0]) in (2, 5) and same(states[0], states[1]) and not same(states[1], states[2])


def test_a_step_that_is_left_out_changes_no_later_draw(training, tmp_path, monkeypatch):
    """A run that goes back and then leaves step 7 out is the run that knew it from the start."""
    training.spoil_losses(7)
    assert training.run() == 0
    other = Training(training.kind, tmp_path / "b", monkeypatch)
    monkeypatch.setattr(Skips, "__contains__", lambda skips, step: step == 7)
    monkeypatch.setattr(Skips, "__getitem__", lambda skips, step: training.state()["skips"]["steps"]["7"])
    assert other.run() == 0
    a, b = training.state(), other.state()
    assert a.pop("skips") != b.pop("skips") and same(a, b) and training.log() == other.log()


def test_a_resumed_run_leaves_out_the_same_steps(training, tmp_path, monkeypatch):
    training.spoil_losses(5, 9)
    assert training.run() == 0
    other = Training(training.kind, tmp_path / "b", monkeypatch)
    other.spoil_losses(5, 9)
    for steps in (4, 6, 8, 11, STEPS):
        assert other.run(steps) == 0
    assert list(other.state()["skips"]["steps"]) == ["5", "9"]
    assert same(training.state(), other.state()) and training.log() == other.log()
    name, part = ("run.model", "generator") if training.kind == "gan" else ("best.pt", "model")
    assert same(training.state(name)[part], other.state(name)[part])


def test_the_third_time_the_run_ends_with_one_clear_line(training, capsys):
    assert training.run(2) == 0
    training.spoil_losses(*range(4, 99))
    assert training.run() == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "at step 6, on " in said and "for the third time (before: 4, 5); nothing of it was saved; lower lr" in said
    refuse(training.state())
    assert training.run() == 2  # it is not forgotten


def test_the_update_that_spoilt_a_weight_is_blamed_and_not_the_step_after_it(training, capsys):
    assert training.run(2) == 0
    training.spoil_weights(6)
    assert training.run() == 0
    said = capsys.readouterr().err
    kept = training.state()["skips"]["steps"]
    assert list(kept) == ["6"] and "at step 6;" in said
    assert [line["step"] for line in training.log() if "skipped" in line] == [6]


def test_it_is_blamed_too_where_losses_are_looked_at_in_bulk(tmp_path, monkeypatch, capsys):
    training = Training("gan", tmp_path / "a", monkeypatch)
    gan_toy.write_config(tmp_path / "a" / "lung.json", ["lung"], num_epochs=99, log_interval=100)
    monkeypatch.setattr(histopathology_gan, "CHECKED_EACH_STEP", ())  # as on a GPU
    assert training.run(2) == 0
    training.spoil_weights(6)
    assert training.run() == 0
    assert training.state()["step"] == STEPS and list(training.state()["skips"]["steps"]) == ["6"]
    assert "at step 6;" in capsys.readouterr().err


def test_from_the_start_where_there_is_no_checkpoint_yet(training):
    training.spoil_losses(1)
    assert training.run(3) == 0
    state = training.state()
    assert state["step"] == 3 and list(state["skips"]["steps"]) == ["1"]


def test_a_checkpoint_from_before_skips_were_kept_is_gone_on_from(training):
    assert training.run(2) == 0
    state = training.state()
    del state["skips"]
    Run(training.folder / "run", json.loads((training.folder / "run" / "config.json").read_text())).save(
        "last.pt", KINDS[training.kind], state
    )
    assert training.run(4) == 0 and training.state()["skips"]["steps"] == {}


def test_a_signal_in_the_step_of_a_fault_stops_after_a_good_one(training, monkeypatch):
    training.spoil_losses(5)
    real = Skips.blame

    def signalled(*args):
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Skips, "blame", signalled)
    assert training.run(8) == 75
    refuse(training.state())
    assert training.state()["step"] >= 1 and training.run(8) == 0 and training.state()["step"] == 8


# ---- By itself ----


def test_only_steps_that_are_to_blame_are_counted(tmp_path, capsys):
    skips = Skips(tmp_path, lambda step: [f"tile {step}"])
    skips.blame(9, "NaN", "lower lr")
    assert skips.first_bad({3: True, 4: False, 5: False}, 5, dict) == 4
    assert skips.first_bad({4: True}, 4, lambda: {"w": torch.tensor(math.inf)}) == 4
    assert skips.first_bad({10: True}, 10, lambda: {"w": torch.tensor(math.inf)}) is None  # not looked at so far on
    skips.blame(4, "a weight is infinite", "lower lr")  # found on the way back to 9
    assert 4 in skips and 9 not in skips and skips[4] == ["tile 4"]
    skips.blame(9, "NaN", "lower lr")
    again = Skips(tmp_path, lambda step: [])
    again.load(skips.state())
    assert again.state() == skips.state() and 4 in again and 9 in again
    with pytest.raises(InputError, match=r"NaN at step 12, on tile 12, for the third time \(before: 4, 9\)"):
        skips.blame(12, "NaN", "lower lr")
    assert 12 not in skips
