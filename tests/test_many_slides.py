"""Many slides: workers that die, hang, or outgrow their memory; two runs at once; kill -9; a full disk; verify; report.

Faults are put into workers with dask's preload: a file that each worker reads as it starts.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_slides import SMALL, half_slide, run_tiles, write_svs

import datasets.claims as claims
import prepare_data
from common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_SOME_FAILED, EXIT_STOPPED, InputError, run_command
from datasets.claims import Claim, Holder, sweep
from datasets.cluster import TOGETHER, WorkersDied, _batches, _begin, _execute, open_workers
from datasets.job import Job, Outcome, TileSettings
from datasets.jobs import Task, _as_typed, cut_claimed, cut_slides
from datasets.tiles import TileStore, open_stores, write_store
from metrics.morphology import morphology
from preparation.progress import Progress, in_words

FAULTS = """
import os, signal, time
import datasets.extraction as extraction
if os.path.exists({dies!r}):  # as it starts, once: its nanny gives it up
    os.unlink({dies!r})
    os._exit(1)
real = extraction.real = getattr(extraction, "real", extraction.cut_slide)  # dask reads this file twice

def cut(job):
    with open({log!r}, "a") as file:
        file.write(job.key + "\\n")
    if job.key.startswith("crash"):
        (job.out / f".crash.tar.{{os.getpid()}}.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    if job.key == "twice" and not os.path.exists({died!r}):
        open({dies!r}, "x").close()
        open({died!r}, "x").close()
        os._exit(1)
    if job.key == "fat":
        held = bytearray(b"x") * 900_000_000
        time.sleep(10)
    if job.key == "s04" and not os.path.exists({stalls!r}):
        open({stalls!r}, "x").close()
        time.sleep(300)
    return real(job)

extraction.cut_slide = cut
"""


def slides_in(folder, n):
    """`n` slides of one content."""
    first = write_svs(folder / "s00.svs", half_slide())
    for i in range(1, n):
        shutil.copy(first, first.with_name(f"s{i:02}.svs"))
    return folder


def jobs_for(tmp_path, *names):
    paths = [write_svs(tmp_path / f"{name}.svs", half_slide(256)) for name in names]
    for path in paths:
        os.utime(path, (1e9, 1e9))  # a store names its slide's time
    (tmp_path / "tiles").mkdir()
    return [Job(path, tmp_path / "tiles", TileSettings(tile_size=64, max_tiles=4)) for path in paths]


def command_of(slides, out, *words):
    return [sys.executable, prepare_data.__file__, "tiles", "--slides", str(slides), "--out", str(out), *SMALL, *words]


def faults(tmp_path):
    """The preload file, and the log in which workers note each slide that they begin."""
    path, log = tmp_path / "faults.py", tmp_path / "begun.txt"
    marks = {name: str(tmp_path / f"{name}.mark") for name in ("stalls", "dies", "died")}
    path.write_text(FAULTS.format(log=str(log), **marks))
    log.write_text("")
    return path, lambda: Counter(log.read_text().split())


def all_whole(out, n):
    """`n` whole stores and nothing beside them: no claim, no half-written file."""
    words = ["verify", "--tiles", str(out), "--workers", "0"]
    assert run_command(prepare_data.main, prepare_data.build_parser(), words) == EXIT_DONE
    assert len(open_stores(out)) == n and not list(out.rglob(".*"))
    return True


# ---- Workers on this machine ----


def test_who_cuts_a_slide_changes_no_byte(tmp_path):
    for folder, workers in (("a", 0), ("b", 2)):
        assert all(o.status == "cut" for o in cut_slides(jobs_for(tmp_path / folder, "s", "t"), workers))
    for name in ("s.tar", "s.json", "t.tar", "t.json", "previews/s.png", "previews/s.jpg"):
        assert (tmp_path / "a/tiles" / name).read_bytes() == (tmp_path / "b/tiles" / name).read_bytes()


def test_a_crash_a_hang_and_too_much_memory_cost_one_slide_each(tmp_path):
    import dask
    import distributed  # noqa: F401  its defaults first: dask's set() restores what it found

    preload, begun = faults(tmp_path)
    todo = jobs_for(tmp_path, "crash", "fat", "good", "hang")
    todo[3].slide.unlink()
    os.mkfifo(todo[3].slide)  # opening it never ends
    for suffix in ("json", "tar"):
        (todo[0].out / f"hang.{suffix}").write_text("an earlier store, damaged")
    with dask.config.set({"distributed.worker.preload": [str(preload)]}):
        outcomes = {o.slide: o for o in cut_slides(todo, workers=2, timeout=4, memory_limit="600MB")}
    assert outcomes["good"].status == "cut"
    assert "its process died 3 times" in outcomes["crash"].reason and str(todo[0].slide) in outcomes["crash"].reason
    assert "its process died 3 times" in outcomes["fat"].reason
    assert "took longer than --slide_timeout 4" in outcomes["hang"].reason
    assert outcomes["hang"].reason.endswith("set aside as hang.json.old, hang.tar.old")
    times = begun()  # a failure that its worker took to the grave before it was told is found once more
    assert times["good"] == 1 and times["crash"] >= 3 and times["fat"] >= 3 and times["hang"] >= 1
    left = sorted(p.name for p in (tmp_path / "tiles").iterdir())
    assert left == ["good.json", "good.tar", "hang.json.old", "hang.tar.old", "previews"]


def test_a_worker_that_dies_as_it_starts_is_replaced_too(tmp_path, monkeypatch):
    import dask
    import distributed  # noqa: F401  its defaults first: dask's set() restores what it found

    monkeypatch.setattr("datasets.cluster.LOOK_SECONDS", 0.5)
    preload, begun = faults(tmp_path)
    config = {"distributed.worker.preload": [str(preload)], "distributed.deploy.lost-worker-timeout": "3s"}
    with dask.config.set(config):
        outcomes = list(cut_slides(jobs_for(tmp_path, "twice", "good"), workers=1))
    assert [o.status for o in outcomes] == ["cut", "cut"] and not (tmp_path / "dies.mark").exists()
    assert begun()["twice"] > 1 and begun()["good"] == 1 and all_whole(tmp_path / "tiles", 2)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="a group of processes is interrupted")
def test_ctrl_c_is_one_line_and_can_be_gone_on_from(tmp_path):
    slides, out = slides_in(tmp_path / "slides", 60), tmp_path / "tiles"
    command = command_of(slides, out, "--workers", "2")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    for claim in out.glob(".*.claim"):  # workers get it too, perhaps long before the parent ends them
        with contextlib.suppress(OSError, ValueError):
            os.kill(json.loads(claim.read_text())["process"], signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED and error.count("\n") == 1, error
    assert "type the same command again" in error
    assert not list(out.rglob(".*")) and open_stores(out)


# ---- Workers of a scheduler ----


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each with its nanny, in processes of their own. Scheduler file, what they began."""
    preload, begun = faults(tmp_path)
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    parts = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]]
    worker = ["worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--preload", str(preload)]
    parts += [[*worker, "--scheduler-file", str(file)]] * 2
    with open(tmp_path / "dask.log", "w") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *words], env=environment, stderr=log, stdout=log, start_new_session=True
            )
            for words in parts
        ]
        while not file.exists():
            time.sleep(0.05)
        yield file, begun
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_killed_worker_costs_nothing(tmp_path, cluster):
    file, begun = cluster
    slides, out, before = slides_in(tmp_path / "slides", 9), tmp_path / "tiles", {}

    def kill_one():
        while not (tmp_path / "stalls.mark").exists():
            time.sleep(0.02)
        before.update({path: path.stat().st_mtime_ns for path in out.glob("*.json")})
        group = os.getpgid(json.loads((out / ".s04.claim").read_text())["process"])
        os.killpg(group, signal.SIGKILL)  # the worker and its nanny: it does not come back

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    line = ["--slides", slides, "--out", out, *SMALL[2:], "--scheduler", file]
    assert run_tiles(*line) == EXIT_DONE
    killer.join()
    names = [f"s{i:02}" for i in range(9)]
    assert begun() == {name: 2 if name == "s04" else 1 for name in names}
    assert all(path.stat().st_mtime_ns == sealed for path, sealed in before.items()) and len(before) >= 2
    report = pd.read_csv(out / "report.csv", index_col="slide")
    assert report["status"].to_dict() == dict.fromkeys(names, "cut") and all_whole(out, 9)


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.cluster.CONNECT_SECONDS", 0.5)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        line = ["--slides", slides_in(tmp_path / "slides", 1), "--out", tmp_path / "tiles", "--scheduler", address]
        assert run_tiles(*line) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f"--scheduler {address}: no dask scheduler answers there" in error and error.count("\n") == 1


def test_a_worker_of_several_threads_is_refused_whenever_it_comes():
    from distributed import Client, LocalCluster

    quiet = {"processes": False, "dashboard_address": None, "n_workers": 1}
    with LocalCluster(threads_per_worker=2, **quiet) as cluster, Client(cluster) as client:
        with pytest.raises(InputError, match=r"has 2 threads, one was expected; .*--nthreads 1"):
            open_workers(1, scheduler=cluster.scheduler_address).__enter__()
        with pytest.raises(InputError, match="has 2 threads, one was expected"):
            client.submit(_begin, str, [7]).result()


def test_short_items_travel_together_and_batches_become_smaller():
    for n, workers in ((1, 1), (9, 2), (200, 2), (25_713, 256)):
        batches = list(_batches(range(n), workers))
        assert [item for batch in batches for item in batch] == list(range(n))
        sizes = [len(batch) for batch in batches]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] <= TOGETHER and sizes[-min(n, 4 * workers) :][0] == 1
    assert len(list(_batches(range(200), 2))) < 50


def test_a_batch_ends_when_its_time_is_over_or_another_item_raises(monkeypatch):
    from distributed import Client, LocalCluster

    def halve(number):
        time.sleep(0.05 * (number == 4))
        if number % 2:
            raise OSError(f"{number} is odd")
        return number // 2

    quiet = {"processes": False, "dashboard_address": None, "n_workers": 1, "threads_per_worker": 1}
    with LocalCluster(**quiet) as cluster, Client(cluster) as client:

        def done(items):
            return client.submit(_begin, halve, items, pure=False).result()

        assert done([2, 6, 8]) == [1, 3, 4]
        monkeypatch.setattr("datasets.cluster.TOGETHER_SECONDS", 0.05)
        assert done([4, 6, 8]) == [2]  # one that took long is handed in at once
        monkeypatch.undo()
        assert done([2, 3, 6]) == [1]  # so is what was done before one that raises
        with pytest.raises(OSError, match="3 is odd"):
            done([3, 6])
        found = dict(_execute(client, halve, _batches(range(2, 82, 2), 1), "here"))  # in batches of 8 and less
        assert found == {number: number // 2 for number in range(2, 82, 2)}
        numbers, found = [*range(2, 22, 2), 3, *range(22, 82, 2)], []
        with pytest.raises(OSError, match="3 is odd"):
            for item, _ in _execute(client, halve, _batches(numbers, 1), "here"):
                found.append(item)
        assert {2, 4, 6, 8} <= set(found)


def test_two_slides_of_a_batch_that_kill_their_worker_cost_themselves(tmp_path):
    import dask
    import distributed  # noqa: F401  its defaults first: dask's set() restores what it found

    preload, begun = faults(tmp_path)
    names = ["a", "crash", "crash2", *"bcdefghijklmn"]
    assert list(next(_batches(names, 1)))[:3] == ["a", "crash", "crash2"]
    with dask.config.set({"distributed.worker.preload": [str(preload)]}):
        outcomes = {o.slide: o for o in cut_slides(jobs_for(tmp_path, *names), workers=1)}
    for name in names:
        if name.startswith("crash"):
            assert "its process died 3 times" in outcomes[name].reason and begun()[name] >= 3
        else:
            assert outcomes[name].status == "cut" and begun()[name] == 1


# ---- Two runs, kill -9, full disk ----


def test_two_runs_on_one_folder_share_the_slides(tmp_path):
    slides, out = slides_in(tmp_path / "slides", 16), tmp_path / "tiles"
    runs = [subprocess.Popen(command_of(slides, out), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [EXIT_DONE, EXIT_DONE], said
    assert all_whole(out, 16)


def test_a_slide_that_another_run_is_cutting_is_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.jobs.POLL_SECONDS", 0.05)
    todo = jobs_for(tmp_path, "a", "b")
    other = Task(todo[0], "a.svs", "other", 0, None)
    claim = Claim(todo[0].out, "a", "other")
    assert claim.take()
    outcomes = cut_slides(todo, workers=0)
    assert next(outcomes).slide == "b"
    threading.Timer(0.5, lambda: (claim.path.unlink(), cut_claimed(other))).start()
    rest = list(outcomes)
    assert [(o.slide, o.status) for o in rest] == [("a", "cut")]
    assert "1 slides are being cut by another run" in capsys.readouterr().err and all_whole(todo[0].out, 2)


def test_a_store_that_another_run_cut_with_other_settings_costs_the_slide_and_stays(tmp_path):
    (job,) = jobs_for(tmp_path, "a")
    assert cut_claimed(Task(job, "a.svs", "other", 0, None)).status == "cut"
    job.settings = TileSettings(tile_size=64, max_tiles=3)
    outcome = cut_claimed(Task(job, "a.svs", "mine", 0, None))
    assert outcome.status == "failed" and "max_tiles (4 there, 3 now)" in outcome.reason and all_whole(job.out, 1)


def test_a_slide_that_cannot_be_looked_at_costs_itself_and_its_store_stays(tmp_path):
    todo = jobs_for(tmp_path, "a", "b")
    assert [o.status for o in cut_slides(todo, workers=0)] == ["cut", "cut"]
    todo[0].slide.unlink()
    outcomes = list(cut_slides(todo, workers=0))
    assert [o.status for o in outcomes] == ["failed", "kept"] and f"{todo[0].slide}: FileNotFound" in outcomes[0].reason
    assert cut_claimed(Task(todo[0], "a.svs", "mine", 0, None)).status == "failed" and all_whole(todo[0].out, 2)


def test_a_store_whose_workers_died_after_it_was_whole_is_taken(tmp_path):
    (job,) = jobs_for(tmp_path, "a")
    task = Task(job, "a.svs", "mine", 0, None)
    assert cut_claimed(task).status == "cut"
    assert _as_typed(task, WorkersDied()).status == "cut" and all_whole(job.out, 1)
    (job.out / "a.json").write_text("damaged")
    outcome = _as_typed(task, WorkersDied())
    assert outcome.status == "failed" and outcome.reason.endswith("set aside as a.json.old, a.tar.old")


SLIDES_A_KILL = 40  # more than are cut between two kills


def kills(tmp_path, n):
    """Kill a run with kill -9 at `n` random moments, each time going on; then finish it, and check every store."""
    slides, out = slides_in(tmp_path / "slides", SLIDES_A_KILL * n), tmp_path / "tiles"
    moments, sealed = random.Random(n), 0
    for k in range(n):
        command = command_of(slides, out, "--workers", "2" if k % 3 == 0 else "0")
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list(out.glob("*.json"))) <= sealed and run.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        run.kill()
        run.wait()
        sealed = len(list(out.glob("*.json")))
        assert sealed < SLIDES_A_KILL * n, f"all slides were cut before kill {k + 1} of {n}"
    assert run_tiles("--slides", slides, "--out", out, *SMALL) == EXIT_DONE
    report = pd.read_csv(out / "report.csv")
    assert len(report) == SLIDES_A_KILL * n and set(report["status"]) <= {"kept", "cut"}
    assert all_whole(out, SLIDES_A_KILL * n)


def test_kill_9_at_random_moments_loses_nothing(tmp_path):
    kills(tmp_path, 3)


@pytest.mark.soak
def test_kill_9_fifty_times(tmp_path):
    kills(tmp_path, 50)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_full_disk_stops_the_run_and_the_next_one_finishes(tmp_path, workers):
    slides, out = slides_in(tmp_path / "slides", 3), tmp_path / "tiles"
    full = subprocess.run(
        command_of(slides, out, "--workers", workers),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000)),  # bytes of one file
        stderr=subprocess.PIPE,
        text=True,
    )
    assert full.returncode == EXIT_BAD_INPUT and full.stderr.count("\n") == 1, full.stderr
    assert f"{out}" in full.stderr and "no space left on the disk" in full.stderr
    assert not list(out.glob("*.json")) and not list(out.rglob(".*"))
    assert run_tiles("--slides", slides, "--out", out, *SMALL) == EXIT_DONE and all_whole(out, 3)


# ---- Claims ----


def claim_by(path, **holder):
    path.write_text(json.dumps({**vars(Holder("other", socket.gethostname(), os.getpid())), **holder}))


def test_a_claim_is_one_runs_until_released(tmp_path):
    mine, theirs = (Claim(tmp_path, "a", run) for run in ("mine", "theirs"))
    assert mine.take() and not theirs.take() and mine.attempt == 1
    with mine.held(0):
        assert not theirs.take()
    assert theirs.take() and not mine.take()


@pytest.mark.parametrize(
    ("holder", "age", "taken"),
    [
        ({}, 0, False),  # at work
        ({"process": 2**22 + 1}, 0, True),  # gone: no such process
        ({"host": "elsewhere", "process": 2**22 + 1}, 0, False),  # not known here
        ({"host": "elsewhere"}, 2 * claims.STALE_SECONDS, True),
        ({}, 2 * claims.STALE_SECONDS, True),  # another process has its number now
    ],
)
def test_a_claim_of_a_holder_that_is_gone_is_taken_over(tmp_path, holder, age, taken):
    claim = Claim(tmp_path, "a", "mine")
    claim_by(claim.path, **holder)
    os.utime(claim.path, (time.time() - age,) * 2)
    assert claim.take() == taken and claim.attempt == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_claim_not_written_to_the_end_is_respected_while_it_is_fresh(tmp_path):
    claim = Claim(tmp_path, "a", "mine")
    claim.path.write_text("")
    assert not claim.take()
    os.utime(claim.path, (1e9, 1e9))
    assert claim.take()


def test_the_slower_of_two_that_take_over_puts_the_claim_back(tmp_path):
    claim = Claim(tmp_path, "a", "mine")
    claim_by(claim.path, run="faster")
    claim._take_away(Holder("dead", "here", 1))  # what it had read before the faster one came
    assert json.loads(claim.path.read_text())["run"] == "faster" and not claim.take()


def test_who_lost_its_claim_leaves_the_others_claim_and_store_alone(tmp_path, monkeypatch):
    (job,) = jobs_for(tmp_path, "a")
    claim, store = job.out / ".a.claim", [job.out / "a.json", job.out / "a.tar"]

    def stopped_for_minutes(job):
        claim_by(claim)
        for path in store:
            path.write_text("the other's")
        return Outcome(job.key, reason="fails here")

    monkeypatch.setattr("datasets.extraction.cut_slide", stopped_for_minutes)
    assert cut_claimed(Task(job, "a.svs", "mine", 0, None)) is None
    assert json.loads(claim.read_text())["run"] == "other" and all(path.exists() for path in store)


def test_a_sweep_leaves_what_may_be_at_work(tmp_path):
    (tmp_path / "previews").mkdir()
    (tmp_path / ".a.claim").write_text("")  # not written to the end
    names = (".b.tar.7.partial", ".b.claim.0f3e.partial", "..b.claim.7.partial", "previews/.b.png.7.partial")
    for name in (*names, ".c.tar.7.partial"):
        (tmp_path / name).write_text("half")
    for name in names:
        os.utime(tmp_path / name, (1e9, 1e9))
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob(".*")) == [".a.claim", ".c.tar.7.partial"]


def test_what_a_dead_holder_half_wrote_is_removed_and_no_neighbours_file(tmp_path):
    (tmp_path / "previews").mkdir()
    theirs = [tmp_path / ".a.tar.7.partial", tmp_path / "previews" / ".a.png.7.partial"]
    others = [tmp_path / ".a.b.tar.7.partial", tmp_path / ".aa.tar.7.partial"]
    for path in (*theirs, *others):
        path.write_bytes(b"half")
    claim = Claim(tmp_path, "a", "mine")
    claim_by(claim.path, process=2**22 + 1)
    assert claim.take() and not any(p.exists() for p in theirs) and all(p.exists() for p in others)


# ---- verify ----


def test_verify_names_what_is_damaged(tmp_path, capsys):
    out = tmp_path / "tiles"
    tile = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    for name in ("whole", "flipped", "short", "unsealed", "sealed"):
        write_store(out, name, [(0, 0, 1.0, tile)] * 3, mpp=0.5, tile_size=16)
    store = TileStore(out / "flipped")
    with open(store.path, "r+b") as file:
        file.seek(int(store._spans[1][0]) + 40)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.truncate(out / "short.tar", 700)
    (out / "unsealed.json").unlink()
    text = (out / "sealed.json").read_text()
    (out / "sealed.json").write_text(text.replace('"mpp": 0.5', '"mpp": 0.6'))
    assert verify(out) == EXIT_SOME_FAILED
    said = capsys.readouterr()
    for name, words in {
        "flipped.tar": "tile 1 .* is damaged",
        "short.tar": "700 bytes",
        "unsealed.tar": "no unsealed.json beside it",
        "sealed.json": "altered or damaged",
    }.items():
        assert re.search(f"{name}: .*{words}", said.err)
    assert "1 tile stores with 3 tiles are whole; 4 damaged" in said.out and "whole" not in said.err
    for path in out.glob("whole*"):
        path.unlink()
    assert verify(out) == EXIT_BAD_INPUT and "none of 4 tile stores is whole" in capsys.readouterr().err
    assert verify(tmp_path / "nowhere") == EXIT_BAD_INPUT


def verify(folder):
    words = ["verify", "--tiles", str(folder), "--workers", "0"]
    return run_command(prepare_data.main, prepare_data.build_parser(), words)


def test_verify_decodes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.tiles.encode_image", lambda *_: b"no picture, with a checksum of its own")
    write_store(tmp_path, "a", [(0, 0, 1.0, np.zeros((16, 16, 3), np.uint8))], mpp=0.5, tile_size=16)
    assert verify(tmp_path) == EXIT_BAD_INPUT
    assert "a.tar: tile 0: not a readable JPEG or PNG" in capsys.readouterr().err


# ---- What the user sees ----


def test_the_report_shows_problems_first_and_the_stain(tmp_path):
    slides, out = tmp_path / "slides", tmp_path / "tiles"
    write_svs(slides / "fine.svs", half_slide())
    write_svs(slides / "a&b.svs", half_slide(), mpp=None)
    assert run_tiles("--slides", slides, "--out", out, *SMALL) == EXIT_SOME_FAILED
    report = pd.read_csv(out / "report.csv", index_col="slide")
    store = open_stores(out)["fine"]
    tiles = np.stack([store.read(i) for i in range(len(store))])
    stain = report.loc["fine", ["haematoxylin", "eosin"]].tolist()
    assert stain[0] == pytest.approx(morphology(tiles, 0.5)["haematoxylin_od"].mean(), rel=0.03)
    assert report.loc["a&b", ["haematoxylin", "eosin"]].isna().all() and "density" not in report
    page = (out / "report.html").read_text()
    assert page.index("<h3>a&amp;b</h3>") < page.index("<h3>fine</h3>") and "a&b" not in page
    assert f"haematoxylin {stain[0]:.2f}, eosin {stain[1]:.2f}" in page
    assert '<img loading="lazy" src="previews/fine.jpg"' in page and (out / "previews" / "fine.jpg").exists()
    assert 'src="previews/a' not in page and "12 tiles of " in page
    again = page.replace("(kept)", "")
    assert run_tiles("--slides", slides, "--out", out, *SMALL) == EXIT_SOME_FAILED
    assert (out / "report.html").read_text() == again
    assert pd.read_csv(out / "report.csv", index_col="slide").loc["fine", "haematoxylin"] == stain[0]


def test_a_page_of_a_thousand_slides_is_light_and_finds_the_odd_stain():
    from figures.slide_page import SlideRow, slide_page

    def row(i, haematoxylin=0.3, left_out=0):
        faults = {"blank": left_out, "blurred": 0}
        return SlideRow(f"s{i}", "cut", 600, 900, faults, 0.5, "file", 0.3, haematoxylin, 0.2, "", True)

    rows = [row(i, 0.3 + 0.01 * (i % 5)) for i in range(1000)] + [row(1000, 0.9), row(1001, left_out=700)]
    page = slide_page("Tiles", "", rows)
    assert len(page) < 1_000_000 and page.count('loading="lazy"') == 1002
    doubtful = page[page.index('id="doubtful"') : page.index('id="fine"')]
    assert doubtful.count("<h3>s") == 2 and "haematoxylin 0.90; the median of the slides is 0.32" in doubtful
    assert "54% of the tiles looked at were left out" in doubtful


def test_progress_in_a_log_counts_slides_tiles_and_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress("tiles", 10)
    progress.add(40, kept=True)
    assert capsys.readouterr().err == ""
    now[0] = 61.0
    progress.add(40)
    assert capsys.readouterr().err.strip() == "tiles: 2 of 10 slides, 80 tiles; 8 min left"
    assert [in_words(s) for s in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]
