"""Saving loses nothing: the file before stays until the new one is whole, on a full disk and at every kill -9 too."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import betaVAE_training
import histopathology_gan
from common import files
from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import BetaVAESettings, GANSettings, load_config
from common.errors import InputError, command_parser, run_command
from common.run import Run

KIND = "gan_training"


def state(step, size=64):
    return {"step": step, "w": torch.linspace(step, step + 1, size)}


def step_of(path):
    return load_checkpoint(path, KIND)[0]["step"]


def saved_twice(folder):
    """A run with step 1 in previous.pt, step 2 in last.pt, and a log up to step 3."""
    run = Run(folder, {})
    for step in (1, 2):
        run.log(step, {"loss": 0.5})
        run.save("last.pt", KIND, state(step))
    run.log(3, {"loss": 0.5})
    return run


def flip(path, offset=None):
    """Flip one bit of the numbers in a checkpoint."""
    data = bytearray(path.read_bytes())
    start = data.index(torch.linspace(2, 3, 64).numpy().tobytes()) if offset is None else offset
    data[start] ^= 1
    path.write_bytes(data)


# ---- The one before ----


def test_the_checkpoint_before_stays_and_nothing_else(tmp_path):
    run = saved_twice(tmp_path)
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [1, 2]
    run.save("last.pt", KIND, state(3))
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "last.pt", "log.jsonl", "previous.pt"]


@pytest.mark.parametrize("damage", [flip, lambda p: os.truncate(p, 700), Path.unlink], ids=["flipped", "cut", "gone"])
def test_a_damaged_last_is_named_and_the_one_before_is_gone_on_from(tmp_path, capsys, damage):
    saved_twice(tmp_path)
    damage(tmp_path / "last.pt")
    run = Run(tmp_path, {})
    assert run.restore(KIND)["step"] == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/last.pt: " in said and f"Going on from {tmp_path}/previous.pt, after step 1" in said
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1]
    run.save("last.pt", KIND, state(5))  # the damaged one never becomes the one before
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [1, 5]


def test_where_both_are_damaged_both_are_named(tmp_path):
    saved_twice(tmp_path)
    flip(tmp_path / "last.pt")
    os.truncate(tmp_path / "previous.pt", 10)
    with pytest.raises(InputError, match=r"last\.pt: content differs .* nor can .*previous\.pt: not a readable"):
        Run(tmp_path, {}).restore(KIND)


def test_another_kind_is_not_taken_for_damage(tmp_path):
    saved_twice(tmp_path)
    with pytest.raises(InputError, match=r"last\.pt: holds a gan_training checkpoint, a betavae_training"):
        Run(tmp_path, {}).restore("betavae_training")


def test_a_last_that_is_damaged_while_the_run_goes_never_becomes_the_one_before(tmp_path):
    run = saved_twice(tmp_path)
    flip(tmp_path / "last.pt")
    assert run.restore(KIND)["step"] == 1  # as where a loss is not finite
    run.save("last.pt", KIND, state(5))
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [1, 5]


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
NOT_DAMAGED = {
    "memory": (MemoryError(), "last.pt does not fit into what is free): end what else runs on it"),
    "torch's memory": (RuntimeError(ALLOCATOR), "last.pt does not fit into what is free): end what else runs"),
    "disk": (OSError(errno.EIO, "Input/output error", "last.pt"), "last.pt: Input/output error; a file that can be"),
    "network": (OSError(errno.ESTALE, "Stale file handle", "last.pt"), "last.pt: Stale file handle; a file that can"),
}


@pytest.mark.parametrize("name", NOT_DAMAGED)
def test_a_last_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, capsys, name):
    saved_twice(tmp_path)
    error, message = NOT_DAMAGED[name]

    def failing(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", failing)
        assert run_command(lambda args: Run(tmp_path, {}).restore(KIND) and None, command_parser("x"), []) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "previous.pt" not in said
    assert Run(tmp_path, {}).restore(KIND)["step"] == 2


def test_a_disk_whose_fault_torch_hides_is_asked_again(tmp_path, monkeypatch):
    saved_twice(tmp_path)

    def failing(path, *_, **__):
        monkeypatch.setattr("builtins.open", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EIO, "no", str(path))))
        raise RuntimeError("PytorchStreamReader failed reading file data/0: file read failed")

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(OSError, match="no") as found:
        load_checkpoint(tmp_path / "last.pt", KIND)
    assert found.value.errno == errno.EIO


@pytest.mark.parametrize("command", [histopathology_gan, betaVAE_training])
def test_a_flag_says_how_often_to_save_and_600_seconds_is_the_default(command, tmp_path):
    cls = GANSettings if command is histopathology_gan else BetaVAESettings
    (tmp_path / "a.json").write_text("{}")
    for words, expected in (("", 600), ("--save_every 0", 0), ("--save_every 30", 30)):
        args = command.build_parser().parse_args(["--config", "a.json", *words.split()])
        assert load_config(cls, tmp_path / "a.json", args).save_every == expected
    Run(tmp_path / "run", {"save_every": 0, "lr": 1})
    Run(tmp_path / "run", {"save_every": 600, "lr": 1})  # an older run goes on
    Run(tmp_path / "older", {"lr": 1})
    Run(tmp_path / "older", {"save_every": 600, "lr": 1})


# ---- The order on the disk ----


def test_it_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    saved_twice(tmp_path)
    run, done = Run(tmp_path, {}), []
    run.restore(KIND)
    for name in ("fsync", "link", "replace"):
        real = getattr(os, name)

        def noted(*args, name=name, real=real):
            is_folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}")
            done.append(f"{name} folder" if is_folder else name)
            return real(*args)

        monkeypatch.setattr(files.os, name, noted)
    run.save("last.pt", KIND, state(3))
    assert done[-4:] == ["link", "replace", "replace", "fsync folder"]
    assert done[:-4] and set(done[:-4]) == {"fsync"}


def test_without_hard_links_the_one_before_is_moved(tmp_path, monkeypatch):
    run = saved_twice(tmp_path)

    def none(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", none)
    run.save("last.pt", KIND, state(3))
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [2, 3]


CALLS = ("fsync", "posix_fadvise", "link", "replace", "unlink")


def killed_at(folder, call):
    """Save step 3 in a process that is killed at its `call`-th call of the system; return whether it was."""
    child = os.fork()
    if not child:
        left = [call]

        def deadly(real):
            def called(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return called

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        torch_save = torch.save
        torch.save = lambda content, path: (torch_save(content, path), deadly(lambda: None)())
        run = Run(folder, {})
        run.restore(KIND)
        run.save("last.pt", KIND, state(3))
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_kill_at_any_moment_of_saving_leaves_a_good_checkpoint(tmp_path):
    kills, names = 0, set()
    for call in range(1, 100):
        folder = tmp_path / str(call)
        saved_twice(folder)
        names |= {p.name.split(".")[1] for p in folder.glob(".*.partial")}
        if not killed_at(folder, call):
            break
        kills += 1
        names |= {p.name.split(".")[1] for p in folder.glob(".*.partial")}
        run = Run(folder, {})
        assert run.restore(KIND)["step"] in (2, 3) and not list(folder.glob(".*"))
        run.save("last.pt", KIND, state(4))
        assert step_of(folder / "last.pt") == 4 and step_of(folder / "previous.pt") in (2, 3)
    assert kills >= 10 and {"last", "previous"} <= names  # in the midst of both files
    assert step_of(folder / "last.pt") == 3


# ---- Disks that are full, or lie ----


def test_a_full_disk_says_what_is_needed_what_is_free_and_where(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path / "run", {})
    run.save("last.pt", KIND, state(1))

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    parser = command_parser("x")
    assert run_command(lambda args: run.save("last.pt", KIND, state(2, 1000)) and None, parser, []) == 2
    said = capsys.readouterr().err
    assert "run/last.pt: no space left on the disk (or quota reached): 4,512 bytes are needed, " in said
    assert f" bytes are free in {tmp_path}/run; free some space there and type the same command again" in said
    assert said.count("\n") == 1 and step_of(tmp_path / "run" / "last.pt") == 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "last.pt"]


def test_where_there_is_no_room_for_a_third_file_the_oldest_makes_room(tmp_path, monkeypatch, capsys):
    run = saved_twice(tmp_path)
    real = torch.save

    def room_for_two(content, path):
        if (tmp_path / "previous.pt").exists():
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(content, path)

    monkeypatch.setattr(torch, "save", room_for_two)
    run.save("last.pt", KIND, state(3))
    assert "previous.pt made room" in capsys.readouterr().err
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [2, 3]


def test_a_limit_of_the_files_size_is_named(tmp_path):
    save_checkpoint(tmp_path / "last.pt", KIND, state(1))
    program = f"""
import sys, torch
from pathlib import Path
from common.checkpoint import save_checkpoint
from common.errors import command_parser, run_command
state = {{"step": 2, "w": torch.ones(100_000)}}
save = lambda args: save_checkpoint({str(tmp_path / "last.pt")!r}, {KIND!r}, state) and None
sys.exit(run_command(save, command_parser("x"), []))
"""
    limited = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 2, limited.stderr
    assert "400,512 bytes are needed, a file may have 50,000 bytes (ulimit -f); raise the limit" in limited.stderr
    assert step_of(tmp_path / "last.pt") == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_keeps_something_else_is_noticed_before_the_old_file_is_given_up(tmp_path, monkeypatch):
    run = saved_twice(tmp_path)
    real = torch.save

    def wrong(content, path):
        real(content, path)
        data = bytearray(Path(path).read_bytes())
        data[data.index(content["state"]["w"].numpy().tobytes()) + 5] ^= 8
        Path(path).write_bytes(data)

    monkeypatch.setattr(torch, "save", wrong)
    with pytest.raises(OSError, match=r"differs from what was written: check the disk.*last\.pt"):
        run.save("last.pt", KIND, state(3))
    assert [step_of(tmp_path / name) for name in ("previous.pt", "last.pt")] == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_torchs_own_faults_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="something else"):
        save_checkpoint(tmp_path / "last.pt", KIND, state(1))
    assert not list(tmp_path.iterdir())


# ---- How often ----


def test_a_save_that_costs_more_than_its_share_is_put_off_and_that_is_said_once(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("common.run.time.monotonic", lambda: now[0])
    run = Run(tmp_path, {})
    run.restore(KIND)

    def due(after, epoch_ends=False, every=60):
        now[0] += after
        return run.after_step(epoch_ends, every)[1]

    assert not due(59) and due(1) and due(0, epoch_ends=True)
    with run.saving():
        now[0] += 10
    assert not due(60) and not due(0, epoch_ends=True) and not due(129)
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "saving takes 10.0 s: the next one comes after 190 s, not after" in said
    assert due(1) and due(0, epoch_ends=True, every=0) and not due(0, every=0)
    with run.saving():
        now[0] += 1
    assert not due(59) and due(1)
