"""kill -9 while training, at random moments and while saving: a good checkpoint always loads, little is lost, and the
finished run is the unkilled one's to the bit."""

import json
import random
import signal
import time

import gan_toy
import killed_runs
import pytest
from betavae_cohort import write_cohort

from common.checkpoint import load_checkpoint

EVERY = 3  # save_every: seconds, of which each step takes one
KINDS = {"histopathology_gan": "gan_training", "betaVAE_training": "betavae_training"}


@pytest.fixture
def cohort(request, tmp_path):
    """The command, and the folder of a cohort for it, where the runs `killed` and `whole` are made."""
    if request.param == "histopathology_gan":
        gan_toy.make_cohort(tmp_path)
        gan_toy.write_config(tmp_path / "lung.json", ["lung"], save_every=EVERY, log_interval=1)
    else:
        write_cohort(tmp_path, n_donors=30, n_genes=60, batch_size=8, num_epochs=999, save_every=EVERY)
    return request.param, tmp_path


def train(command, folder, run, steps, dies_at=0):
    words = f"--max_steps {steps} --save_dir {run} --config "
    words += "lung.json --loss_type wganvae --n_workers 1 --num_epochs 99" if "gan" in command else "vae.json"
    return killed_runs.start(command, words, folder, dies_at)


def said(folder):
    return (folder / "said.txt").read_text()[-2000:]


def log_of(run):
    """The log's lines without times; one that a kill cut short left out."""
    path, found = run / "log.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(gan_toy.repeatable(json.loads(line)))
        except ValueError:
            continue
    return found


def model_of(command, run):
    return run / (f"{run.name}.model" if "gan" in command else "best.pt")


def check(command, run):
    """After a kill: what is there is whole, and what is lost is within save_every."""
    done, saved = max((line["step"] for line in log_of(run)), default=0), 0
    for name in ("previous.pt", "last.pt"):
        if (run / name).exists():
            saved = load_checkpoint(run / name, KINDS[command])[0]["step"]
    assert done - saved <= EVERY
    if model_of(command, run).exists():
        load_checkpoint(model_of(command, run))


def same_as_the_whole(command, folder, steps):
    """Finish the run, and another that was not killed: they are equal."""
    killed, whole = folder / "killed", folder / "whole"
    for run in (killed, whole):
        process = train(command, folder, run.name, steps)
        process.join()
        assert process.exitcode == 0, said(folder)
    for a, b in ((killed / "last.pt", whole / "last.pt"), (model_of(command, killed), model_of(command, whole))):
        assert load_checkpoint(a)[1] == load_checkpoint(b)[1], a.name
    assert log_of(killed) == log_of(whole) and log_of(whole)[-1]["step"] == steps
    assert not list(killed.glob(".*.partial"))  # elsewhere a cache that a kill cut short may lie


def kills(command, folder, n):
    """Kill the run n times: in turn at a random moment, and at a random call of saving."""
    run, moments, killed, steps = folder / "killed", random.Random(n), 0, 8 * n
    for k in range(n):
        before, dies_at = len(log_of(run)), moments.randrange(4, 40) if k % 2 else 0
        process = train(command, folder, "killed", steps, dies_at)
        if not dies_at:
            while len(log_of(run)) <= before and process.is_alive():
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), said(folder)
        killed += process.exitcode == -signal.SIGKILL
        check(command, run)
    assert killed >= n // 2
    same_as_the_whole(command, folder, steps)


@pytest.mark.parametrize("cohort", KINDS, indirect=True)
def test_kill_9_loses_save_every_at_most_and_changes_nothing(cohort):
    kills(*cohort, 3)


@pytest.mark.soak
@pytest.mark.parametrize("cohort", KINDS, indirect=True)
def test_kill_9_fifty_times(cohort):
    kills(*cohort, 50)


@pytest.mark.soak
@pytest.mark.parametrize("cohort", KINDS, indirect=True)
def test_kill_9_at_every_call_of_saving(cohort):
    command, folder = cohort
    for dies_at in range(1, 200):
        process = train(command, folder, "killed", 12, dies_at)
        process.join()
        check(command, folder / "killed")
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, said(folder)
    assert process.exitcode == 0 and dies_at > 5
    same_as_the_whole(command, folder, 12)
