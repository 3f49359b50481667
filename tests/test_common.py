"""Settings, runs and sealed checkpoints: what is written is what is read, and a fault is named in one line."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from common import files
from common.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint
from common.config import BetaVAESettings, GANSettings, load_config, settings_dict
from common.errors import InputError, Stopped, command_parser, run_command
from common.run import Run, generator_for, pick_device
from common.wandb_log import wandb_knows_us

STATE = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "genes": ["a", "b"], "epoch": 3, "lr": 1e-4, "none": None}
PUBLISHED = {  # the keys of the published lung config, in its types
    "path_csv": ["lung.csv"],
    "patch_data_path": ["tiles/lung"],
    "img_size": 256,
    "max_patch_per_wsi": 200,
    "rna_features": 19198,
    "weights_decay": 0,
    "lr": 0.0002,
    "num_epochs": 900,
    "n_workers": 10,
    "device": 0,
    "flag": "gan_proteincoding",
    "save_dir": "checkpoints/x/",
    "summary_path": "s/",
    "log_interval": 100,
    "bag_size": 50,
    "batch_size": 64,
    "quick": 0,
}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# --- checkpoints ---


def test_checkpoint_round_trip(tmp_path):
    digest = save_checkpoint(tmp_path / "a.pt", "gan", STATE)
    state, again = load_checkpoint(tmp_path / "a.pt", "gan")
    assert digest == again and torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["genes"] == ["a", "b"] and state["none"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "gan", {"w": torch.linspace(1, 2, 64)})
    whole = path.read_bytes()
    start = whole.index(torch.linspace(1, 2, 64).numpy().tobytes())
    for offset in range(0, 256, 17):
        path.write_bytes(whole[: start + offset] + bytes([whole[start + offset] ^ 1]) + whole[start + offset + 1 :])
        with pytest.raises(InputError, match=r"a\.pt"):
            load_checkpoint(path, "gan")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, share):
    path = tmp_path / "a.pt"
    save_checkpoint(path, "gan", STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"not a readable checkpoint, or cut short \(\w+\); copy or train it again$"):
        load_checkpoint(path)


def test_a_foreign_checkpoint_names_the_remedy(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: not a checkpoint of this toolkit; name the best\.pt"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", "betavae", STATE)
    with pytest.raises(InputError, match="holds a betavae checkpoint, a gan checkpoint was expected"):
        load_checkpoint(tmp_path / "a.pt", "gan")


def test_a_hostile_pickle_is_not_executed(tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    (tmp_path / "a.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"kind": "gan", "digest": "", "state": Payload()}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match=r"not a readable checkpoint|b\.pt: asks for \w+\.mkdir"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_a_weight_that_is_not_finite_never_reaches_the_disk(tmp_path):
    with pytest.raises(ValueError, match=r"state\.model\.w holds NaN"):
        save_checkpoint(tmp_path / "a.pt", "gan", {"model": {"w": torch.tensor([1.0, float("nan")])}})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.pt"
    digest = save_checkpoint(path, "gan", STATE)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files.os, "fsync", full)
    parser = command_parser("x")
    status = run_command(lambda args: save_checkpoint(path, "gan", {"w": torch.ones(3)}) and None, parser, [])
    assert status == 2 and "no space left on the disk" in capsys.readouterr().err
    assert load_checkpoint(path)[1] == digest and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["run", "run.model", "run.pt", "run/run.model"])
def test_a_run_may_be_named_in_four_ways(tmp_path, name):
    save_checkpoint(tmp_path / "run" / "run.model", "gan", STATE)
    assert resolve_checkpoint(tmp_path / name) == tmp_path / "run" / "run.model"


def test_a_run_that_is_not_there_shows_the_nearest(tmp_path):
    (tmp_path / "gan_lung").mkdir()
    with pytest.raises(InputError, match=r"nearest: .*gan_lung"):
        resolve_checkpoint(tmp_path / "gan_lungs.model")
    with pytest.raises(InputError, match="finish its training first"):
        resolve_checkpoint(tmp_path / "gan_lung")


# --- settings ---


def test_a_published_config_works_unchanged(tmp_path, capsys):
    cfg = load_config(GANSettings, write(tmp_path / "c.json", PUBLISHED))
    assert (cfg.img_size, cfg.batch_size, cfg.device, cfg.weights_decay) == (256, 64, "0", 0.0)
    assert cfg.lr_generator == cfg.lr_critic == 0.0002  # a lone lr sets both
    err = capsys.readouterr().err
    assert "sets lr_generator and lr_critic" in err and "bag_size is not used" in err


def test_a_flag_wins_over_the_file(tmp_path):
    args = argparse.Namespace(num_epochs=3, save_dir=None, unrelated=1)
    cfg = load_config(GANSettings, write(tmp_path / "c.json", PUBLISHED), args)
    assert cfg.num_epochs == 3 and cfg.save_dir == "checkpoints/x/"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_epoch": 3}, r"c\.json: unknown setting\(s\) num_epoch; nearest: num_epochs"),
        ({"img_size": "big"}, r"c\.json: img_size: expected int, found 'big'"),
        ({"batch_size": True}, r"batch_size: expected int, found True"),
        ([1], r"c\.json: a JSON object"),
        ('{"a": 1,}', r"c\.json: line 1, column"),
    ],
)
def test_a_wrong_config_is_named(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load_config(GANSettings, write(tmp_path / "c.json", content))


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        load_config(BetaVAESettings, tmp_path / "none.json")


def test_a_key_of_another_stage_is_left_alone(tmp_path):
    cfg = load_config(BetaVAESettings, write(tmp_path / "d.json", {"gan_type": "dcgan", "patch_data_path": "tiles"}))
    assert cfg.patch_data_path == ["tiles"] and not hasattr(cfg, "gan_type")


# --- runs ---


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    settings = settings_dict(GANSettings(save_dir=str(tmp_path / "r"), num_epochs=3))
    Run(tmp_path / "r", settings)
    Run(tmp_path / "r", settings | {"num_epochs": 5, "device": "cpu"})  # may grow; may move
    with pytest.raises(InputError, match=r"batch_size \(8 there, 16 now\)"):
        Run(tmp_path / "r", settings | {"num_epochs": 5, "batch_size": 16})
    with pytest.raises(InputError, match="num_epochs"):
        Run(tmp_path / "r", settings | {"num_epochs": 2})


def test_restart_moves_the_old_run_aside(tmp_path, capsys):
    run = Run(tmp_path / "r", {"batch_size": 1})
    run.save("last.pt", "gan_training", {"step": 1})
    assert Run(tmp_path / "r", {"batch_size": 2}, restart=True).restore("gan_training") is None
    assert len(list(tmp_path.glob("r.*/last.pt"))) == 1


def test_the_log_has_no_line_of_steps_that_were_lost(tmp_path):
    run = Run(tmp_path / "r", {})
    for step in range(5):
        run.log(step, {"loss": torch.tensor(step / 2)})
    run.save("last.pt", "gan_training", {"step": 2})
    with open(run.folder / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # cut by a kill
    assert Run(tmp_path / "r", {}).restore("gan_training")["step"] == 2
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and lines[2]["loss"] == 1.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_the_run_to_stop(tmp_path, number):
    with Run(tmp_path / "r", {}) as run:
        run.hold_signals()
        os.kill(os.getpid(), number)
        assert run.after_step() == (True, False)
        with pytest.raises(Stopped, match="after step 7"):
            run.stop(7)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_seeds_depend_on_place_alone():
    draw = lambda *place: torch.rand(3, generator=generator_for(*place)).tolist()  # noqa: E731
    assert draw(1, "noise", 5) == draw(1, "noise", 5)
    assert len({tuple(draw(*p)) for p in [(1, "noise", 5), (1, "noise", 6), (2, "noise", 5), (1, "other", 5)]}) == 4


def test_devices(capsys):
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("0").type == "cpu" and "using the CPU" in capsys.readouterr().err
        with pytest.raises(InputError, match="a GPU was asked for"):
            pick_device("cuda")
    with pytest.raises(InputError, match="expected cpu, cuda"):
        pick_device("gpu")


def test_what_killed_runs_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {"gone": gone.pid, "own": os.getpid(), "running": os.getppid(), "old": os.getppid()}
    for name, number in names.items():
        (folder / f".{name}.pt.{number}.partial").write_text("half")
    os.utime(folder / f".old.pt.{os.getppid()}.partial", (0, 0))
    (folder / ".mine.partial").write_text("not one of ours")
    Run(folder, {})
    left = {path.name for path in folder.glob(".*")}
    assert left == {f".running.pt.{os.getppid()}.partial", ".mine.partial"}


def test_a_wandb_key_is_found_without_asking_the_network(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb_knows_us()
    write(tmp_path / "netrc", "machine api.wandb.ai\n  login user\n  password key\n").chmod(0o600)
    assert wandb_knows_us()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/api")
    assert not wandb_knows_us()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_knows_us()


# --- errors ---


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("x.csv: row 3: text\nin a number"), 2, "x.csv: row 3: text in a number"),
        (Stopped("saved"), 75, "type the same command again"),
        (KeyboardInterrupt(), 75, "interrupted"),
        (FileNotFoundError(errno.ENOENT, "gone", "a.svs"), 2, "a.svs: no such file"),
        (OSError(errno.EDQUOT, "quota", "b.pt"), 2, "b.pt: no space left"),
        (PermissionError(errno.EACCES, "no", "c"), 2, "c: permission denied"),
        (
            IsADirectoryError(errno.EISDIR, "is", ".d.1.partial", None, "d"),
            2,
            "d: is a folder, a file was expected",
        ),
        (NotADirectoryError(errno.ENOTDIR, "not", "e/f"), 2, "e/f: a folder was expected, a file stands in its place"),
        (OSError(errno.EIO, "Input/output error", "g"), 2, "g: Input/output error; a file that can be read"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            2,
            "the GPU is out of memory (CUDA out of memory. Tried to allocate 2 GiB): lower --micro_batch (training)",
        ),
        (ZeroDivisionError("oops"), 1, "fault of the program"),
        (torch.OutOfMemoryError(), 2, "the GPU is out of memory: lower --micro_batch (training) or --batch_size, or"),
        (RuntimeError("CUDA error: out of memory"), 2, "the GPU is out of memory (CUDA error: out of memory): lower"),
        (MemoryError(), 2, "this machine is out of memory: end what else runs on it, ask for more (Slurm: --mem) or"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            2,
            "this machine is out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        ),
    ],
)
def test_every_error_is_one_line_and_a_status(capsys, error, status, words):
    def main(args):
        raise error

    assert run_command(main, command_parser("x"), []) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


def test_an_output_that_is_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "out.json").mkdir()
    assert run_command(lambda args: files.write_json(tmp_path / "out.json", {}), command_parser("x"), []) == 2
    assert f"{tmp_path}/out.json: is a folder, a file was expected" in capsys.readouterr().err


def test_a_write_that_fails_without_a_name_names_the_file(tmp_path, capsys):
    def fill(error):
        with files.atomic_path(tmp_path / "x.bin") as partial:
            partial.write_bytes(b"half")
            raise error

    for error, words in (
        (OSError(errno.EFBIG, "File too large"), "x.bin: no space left on the disk"),
        (OSError("4096 requested and 7 written"), "x.bin: 4096 requested and 7 written; a file that can be"),
        (PermissionError(errno.EACCES, "no", str(tmp_path / f".x.bin.{os.getpid()}.partial")), "x.bin: permission den"),
        (FileNotFoundError(errno.ENOENT, "gone", "other.svs"), "other.svs: no such file"),
    ):
        assert run_command(lambda args, error=error: fill(error), command_parser("x"), []) == 2
        assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_is_made_or_refused_before_the_work(tmp_path, capsys):
    assert files.make_folder(tmp_path / "a" / "b").is_dir() and files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert run_command(lambda args, path=path: files.make_folder(path) and None, command_parser("x"), []) == 2
        assert f"{path}: a folder was expected, a file stands in its place" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--nothing"], ["part", "--number", "x"], ["part", "a\nb"], ["--deb"], ["part", "--num", "1"]]
)
def test_a_wrong_flag_is_one_line_with_its_help(capsys, words):
    parser = command_parser("x")
    parser.prog = "command.py"
    parts = parser.add_subparsers()
    parts.add_parser("part").add_argument("--number", type=int)
    with pytest.raises(SystemExit) as left:
        run_command(lambda args: None, parser, words)
    err = capsys.readouterr().err
    assert left.value.code == 2 and err.count("\n") == 1 and err.startswith("command.py") and "--help" in err
