"""Signals: every command ends in good order, with 75 and one line; a second signal ends it at once; no half files."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import gan_toy
import pytest
from conftest import ROOT
from test_many_slides import command_of, slides_in

import histopathology_gan
from common import stopping
from common.errors import EXIT_STOPPED, command_parser, run_command
from common.files import atomic_path, write_text
from common.run import Run
from common.stopping import Interrupted, held_back, signals_handled, stop_requested
from datasets.image_folder import read_image
from datasets.tiles import open_stores

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def kill_me(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def in_a_child(work):
    """Run work() under run_command in a process of its own; return its exit status."""
    child = os.fork()
    if not child:
        status = 99
        try:
            status = run_command(lambda args: work(), command_parser("x"), [])
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", SIGNALS)
def test_any_command_ends_with_75_and_one_line(capsys, number):
    before = [signal.getsignal(s) for s in SIGNALS]

    def work(args):
        kill_me(number)
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    assert run_command(work, command_parser("x"), []) == EXIT_STOPPED
    said = capsys.readouterr().err
    name = signal.Signals(number).name
    assert f"stopped by {name}; type the same command again to go on" in said and said.count("\n") == 1
    assert before == [signal.getsignal(s) for s in SIGNALS]


def test_no_clause_for_errors_swallows_a_signal():
    def work():
        try:
            kill_me()
        except Exception:
            return 0
        return 1

    assert in_a_child(work) == EXIT_STOPPED


def test_a_signal_while_a_file_is_written_leaves_the_old_one_and_no_half(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def write(args):
        with atomic_path(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            kill_me()
            partial.write_text("whole")

    assert run_command(write, command_parser("x"), []) == EXIT_STOPPED
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_signal_while_a_file_is_renamed_waits_until_it_is(tmp_path, monkeypatch, call):
    write_text(tmp_path / "a.txt", "old")
    real, calls = getattr(os, call), []

    def signalled(*args):
        calls.append(call)
        if (call, len(calls)) in (("fsync", 2), ("replace", 1)):  # fsync of the folder, after the renaming
            kill_me()
        return real(*args)

    monkeypatch.setattr(os, call, signalled)
    reached = []

    def write(args):
        write_text(tmp_path / "a.txt", "new")
        reached.append(1)

    assert run_command(write, command_parser("x"), []) == EXIT_STOPPED
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")] and not reached


def test_a_signal_as_half_files_are_removed_leaves_none(tmp_path, monkeypatch):
    """The moment that atomic_path itself cannot guard: run_command removes what is left."""
    real, calls = stopping.hold_signals, []

    def signalled():
        calls.append(1)
        if len(calls) == 1:  # on the way into the removal
            kill_me()
        real()

    monkeypatch.setattr(stopping, "hold_signals", signalled)

    def write(args):
        with atomic_path(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise ValueError("no")

    assert run_command(write, command_parser("x"), []) == EXIT_STOPPED
    assert calls and not list(tmp_path.iterdir())


def test_only_a_step_is_told_to_be_finished_first(tmp_path, capsys):
    with signals_handled(), pytest.raises(Interrupted), held_back():
        kill_me()
    assert capsys.readouterr().err == ""
    with Run(tmp_path / "run", {}) as run:
        run.hold_signals()
        kill_me()
        assert "finishing this step, then saving" in capsys.readouterr().err


def test_held_back_signals_come_afterwards():
    reached = []
    with signals_handled():
        with pytest.raises(Interrupted, match="SIGUSR1"), held_back():
            with held_back():
                kill_me(signal.SIGUSR1)
            reached.append(stop_requested())
        assert reached == [True]


@pytest.mark.parametrize("held", [False, True])
def test_a_second_signal_leaves_at_once_and_leaves_no_half_file(tmp_path, held):
    def work():
        with Run(tmp_path / "run", {}) as run, atomic_path(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            if held:
                run.hold_signals()
            with suppress(KeyboardInterrupt):  # something that takes long to end
                kill_me()
            kill_me(signal.SIGINT)
            (tmp_path / "reached").touch()

    assert in_a_child(work) == EXIT_STOPPED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_what_a_launcher_repeats_within_a_second_is_one_signal(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    def work():
        with held_back():
            kill_me()
            kill_me()
            (tmp_path / "first").touch()
            stopping._State.at -= 2 * stopping.ECHO_SECONDS
            kill_me()
            (tmp_path / "second").touch()

    assert in_a_child(work) == EXIT_STOPPED
    assert [p.name for p in tmp_path.iterdir()] == ["first"]


def test_threads_neither_hold_signals_nor_are_interrupted(tmp_path):
    def hold_for_ever(ready, end):
        with held_back(), atomic_path(tmp_path / "thread.txt") as partial:
            partial.write_text("whole")
            ready.set()
            end.wait()

    def work():
        ready, end = threading.Event(), threading.Event()
        thread = threading.Thread(target=hold_for_ever, args=(ready, end))
        thread.start()
        ready.wait()
        try:
            kill_me()
        finally:
            end.set()
            thread.join()
        return 0

    assert in_a_child(work) == EXIT_STOPPED
    assert (tmp_path / "thread.txt").read_text() == "whole"


def test_a_run_is_stopped_at_once_before_and_after_its_loop_and_after_the_step_within(tmp_path):
    with signals_handled(), Run(tmp_path / "run", {}) as run:
        run.hold_signals()
        kill_me()
        assert run.after_step() == (True, False)
        with pytest.raises(Interrupted):
            run.release_signals()
    with pytest.raises(Interrupted), Run(tmp_path / "run", {}):
        kill_me()
    with Run(tmp_path / "run", {}) as run:  # one that comes as the last step is done stops nothing any more
        run.hold_signals()
        kill_me()


# ---- Whole commands ----


def started(words, until, folder):
    """Start a command; return its process once until(folder) is true."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not until(folder):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    return process


def test_the_demos_cohort_stops_and_goes_on(tmp_path):
    words = [str(ROOT / "prepare_data.py"), "demo", "--out", "demo", "--donors", "24", "--slide_px", "512"]
    process = started(words, lambda f: any((f / "demo").rglob("*.svs")), tmp_path)
    process.send_signal(signal.SIGUSR1)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, error
    assert "stopped by SIGUSR1; type the same command again" in error.splitlines()[-1]
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_cutting_tiles_stops_and_goes_on(tmp_path, workers):
    slides = slides_in(tmp_path / "slides", 40)
    words = command_of(slides, tmp_path / "tiles", "--workers", workers)
    process = started(words[1:], lambda f: len(list(f.glob("tiles/*.json"))) > 1, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, error
    assert "stopped by SIGTERM; type the same command again" in error.splitlines()[-1]
    found = len(open_stores(tmp_path / "tiles"))
    assert 1 < found < 40 and not list((tmp_path / "tiles").rglob(".*"))


def test_generation_stops_and_what_it_wrote_is_whole(tmp_path, monkeypatch):
    cohort = gan_toy.make_cohort(tmp_path)
    monkeypatch.chdir(cohort)
    assert gan_toy.run(histopathology_gan, "--config lung.json --loss_type wgan --max_steps 1 --model_dir run") == 0
    words = [ROOT / "generate_tissue_images.py", "--checkpoint", "run", "--config", "lung.json", "--out", "out"]
    process = started([*words, "--sample_size", "100000"], lambda f: len(list(f.glob("out/*.png"))) > 3, cohort)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, error
    assert "stopped by SIGTERM; type the same command again" in error.splitlines()[-1]
    assert not list(cohort.rglob(".*.partial"))
    for path in cohort.glob("out/*.png"):
        assert read_image(path).shape == (gan_toy.SIDE, gan_toy.SIDE, 3)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda p: p.name)
def test_every_command_is_run_where_signals_are_handled(path):
    last = r"sys\.exit\(run_command\(main, build_parser\((sys\.argv\[1:\])?\)\)\)"
    assert re.search(rf"\n    {last}\n$", path.read_text())
