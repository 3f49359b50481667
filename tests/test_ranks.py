"""Training by several ranks is training by one: the same losses, one log, one checkpoint, one stop."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import gan_toy
import many_ranks
import pytest
import torch
from betavae_cohort import write_cohort

import betaVAE_training
import histopathology_gan
from common.checkpoint import load_checkpoint

GAN = many_ranks.ROOT / "histopathology_gan.py"
TOLERANCE = 1e-5  # of a loss; sums of two shares are rounded otherwise than the sum of all
SEEING = {"batch_size": 6, "cond_dropout": 0.4, "mismatched_weight": 1.0, "cond_jitter": 0.3}
PUBLISHED = {"standardise": "batch", "noise": "uniform", "critic_norm": "batch", "critic_output": "leaky"}
PUBLISHED |= {"penalty_per": "batch", "batch_size": 6, "shuffle": "slides"}
RESIDUAL = {"gan_type": "residual", "turns": True, "augment": 0.5, "penalty_every": 2, "batch_size": 5}
GANS = {
    "plain": ("wgan", {"critic_steps": 2}),
    "seeing": ("wgangpvae", SEEING),
    "published": ("wganvae", PUBLISHED),
    "residual": ("rpganvae", SEEING | RESIDUAL),
    "differences": ("rpganvae", SEEING | RESIDUAL | {"penalty_form": "difference", "batch_size": 6}),
    "slope": ("wgangpvae", SEEING | RESIDUAL),
    "parts": ("rpganvae", SEEING | RESIDUAL | {"micro_batch": 2}),
}
# The paper's rate. A bias before batch norm has no slope but rounding, of which Adam makes whole steps: a larger rate
# lets validation losses, not training's, differ by more than TOLERANCE.
VAES = {"vae": {"lr": 5e-5}, "uneven": {"lr": 5e-5, "batch_size": 7}}


made = gan_toy.made


@pytest.fixture(scope="module")
def trained(made):
    """A folder with each run made by one process (one_*) and by two (two_*), and what the two printed."""
    folder = made
    here = Path.cwd()
    os.chdir(folder)
    lines = []
    for name, (loss, changes) in GANS.items():
        gan_toy.write_config(Path(f"{name}.json"), ["lung"], loss_type=loss, log_interval=1, **changes)
        lines.append(f"histopathology_gan.py --config {name}.json --max_steps 5 --model_dir WHO_{name}")
    for name, changes in VAES.items():
        write_cohort(Path(name), n_donors=32, n_genes=100, num_epochs=3, **changes)
        lines.append(f"betaVAE_training.py --config {name}/vae.json --save_dir WHO_{name}")
    try:
        for line in lines:
            module = betaVAE_training if line.startswith("beta") else histopathology_gan
            assert gan_toy.run(module, line.replace("WHO", "one").partition(" ")[2]) == 0
        status, out, err = many_ranks.run_lines([line.replace("WHO", "two") for line in lines], 2, folder)
        assert status == [0, 0], err
        yield folder, out, err, len(lines)
    finally:
        os.chdir(here)


@pytest.fixture
def cohort(made, tmp_path, monkeypatch):
    for name in ("data", "tiles", "checkpoints"):
        shutil.copytree(made / name, tmp_path / name)
    gan_toy.write_config(tmp_path / "lung.json", ["lung"], log_interval=1, loss_type="wgan")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log_of(run):
    lines = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    return [gan_toy.repeatable(line) for line in lines]


def assert_same_log(a, b, tolerance=TOLERANCE):
    a, b = log_of(a), log_of(b)
    assert len(a) == len(b) > 0 and [line.keys() for line in a] == [line.keys() for line in b]
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", [*GANS, *VAES])
def test_two_ranks_train_as_one_does(trained, name):
    folder, out, err, count = trained
    assert [o.splitlines()[-1] for o in out] == [str([0] * count)] * 2
    assert len(out[1].splitlines()) == 1 and not err[1], "another rank than the first prints nothing"
    one, two = folder / f"one_{name}", folder / f"two_{name}"
    assert_same_log(one, two)
    files = [sorted(p.name.replace("one", "two") for p in run.iterdir()) for run in (one, two)]
    assert files[0] == files[1] and not any("partial" in name for name in files[1])
    assert len(log_of(one)) >= 5
    a, b = (load_checkpoint(run / "last.pt")[0] for run in (one, two))
    assert a["step"] == b["step"]
    for part in ("generator", "critic", "average", "model"):
        for key, value in a.get(part, {}).items():
            assert torch.allclose(value.float(), b[part][key].float(), atol=2e-3, rtol=1e-3), (part, key)


# ---- Stops, deaths, other numbers of ranks ----


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def steps_of(run):
    path = Path(run, "log.jsonl")
    return path.read_text().count("\n") if path.exists() else 0


def started(words, world, folder):
    return many_ranks.start([GAN, *words.split()], world, folder)


def test_a_signal_to_any_rank_stops_all_after_the_same_step_and_one_goes_on(cohort):
    words = "--config lung.json --num_epochs 999 --model_dir run"
    processes = started(words, 2, cohort)
    until(lambda: steps_of("run") > 2)
    processes[1].send_signal(signal.SIGUSR1)
    status, _, err = many_ranks.finish(processes)
    assert status == [75, 75] and err[1] == ""
    step = load_checkpoint("run/last.pt", "gan_training")[0]["step"]
    assert f"stopped by a signal after step {step}" in err[0] and steps_of("run") == step
    assert gan_toy.run(histopathology_gan, f"{words} --max_steps {step + 4}") == 0
    assert gan_toy.run(histopathology_gan, f"{words.replace('run', 'whole')} --max_steps {step + 4}") == 0
    # Not as close as TOLERANCE: Adam makes a whole step of a rounding error where a slope is near 0, and they add up.
    assert_same_log("whole", "run", 1e-2)


def test_a_killed_rank_is_named_and_the_same_command_goes_on_from_the_last_checkpoint(cohort):
    words = "--config lung.json --num_epochs 999 --model_dir run"
    processes = started(words, 2, cohort)
    until(lambda: (cohort / "run" / "run.model").exists())
    processes[1].kill()
    status, _, err = many_ranks.finish(processes)
    assert status == [75, -signal.SIGKILL], err
    assert re.search(r"rank 1 of 2 is gone; .*; type the same command again to go on\n$", err[0]), err[0]
    step = load_checkpoint("run/last.pt", "gan_training")[0]["step"]
    status, out, err = many_ranks.run([GAN, *words.split(), "--max_steps", step + 2], 2, cohort)
    assert status == [0, 0], err
    assert f"going on after step {step} of {step + 2}" in out[0]
    assert load_checkpoint("run/last.pt", "gan_training")[0]["step"] == step + 2


def test_twenty_steps_of_two_ranks_and_twenty_of_one_see_the_data_of_forty(cohort):
    gan_toy.write_config(Path("c.json"), ["lung"], log_interval=1, num_epochs=4, loss_type="wgangpvae", **SEEING)
    runs = {name: f"--config c.json --model_dir {name}" for name in ("parts", "whole")}
    status, _, err = many_ranks.run([GAN, *runs["parts"].split(), "--max_steps", 20], 2, cohort)
    assert status == [0, 0], err
    assert gan_toy.run(histopathology_gan, f"{runs['parts']} --max_steps 40") == 0
    assert gan_toy.run(histopathology_gan, f"{runs['whole']} --max_steps 40") == 0
    assert len(log_of("whole")) == 40
    assert_same_log("whole", "parts", 1e-2)  # see above; other data would differ by more than a tenth


def test_parallel_starts_the_ranks_and_passes_a_signal_on(cohort):
    words = "--config lung.json --num_epochs 999 --model_dir run --parallel 2"
    (process,) = many_ranks.start_alone([GAN, *words.split()], cohort)
    until(lambda: steps_of("run") > 2)
    process.send_signal(signal.SIGTERM)
    (status,), (out,), (err,) = many_ranks.finish([process])
    assert status == 75 and "2 processes, cpu" in out, err
    assert len([line for line in err.splitlines() if "error" in line]) == 1 and "SIGTERM" in err, err
    assert load_checkpoint("run/last.pt", "gan_training")[0]["step"] == steps_of("run")


def test_no_thread_of_the_group_is_left_when_python_ends(cohort):
    """One that still holds a tensor aborts the process then: status 134, one time in hundreds."""
    (cohort / "watched.py").write_text(
        "import atexit, contextlib, os, runpy, sys\n"
        "from pathlib import Path\n"
        "def names():\n"
        "    for task in Path('/proc/self/task').iterdir():\n"
        "        with contextlib.suppress(OSError):  # it ended just now\n"
        "            yield (task / 'comm').read_text().strip()\n"
        "atexit.register(lambda: Path(f'left.{os.environ[\"RANK\"]}').write_text(' '.join(names())))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = ["watched.py", GAN, "--config", "lung.json", "--model_dir", "run", "--num_epochs", 999]
    processes = many_ranks.start(words, 2, cohort)
    until(lambda: Path("run", "run.model").exists())
    processes[1].kill()
    status, _, err = many_ranks.finish(processes)
    assert status == [75, -signal.SIGKILL], err
    nothing_left(0)
    for more, expected in ((["--max_steps", steps_of("run") + 2], 0), (["--batch_size", 1], 2)):
        status, _, err = many_ranks.run([*words, *more], 2, cohort)
        assert status == [expected] * 2, err
        nothing_left(0)
        nothing_left(1)


def nothing_left(rank):
    left = Path(f"left.{rank}")
    threads = left.read_text()
    assert "python" in threads and "gloo" not in threads and "store" not in threads, threads
    left.unlink()


def test_what_cannot_be_divided_is_refused_in_one_line(cohort):
    lines = [
        "histopathology_gan.py --config lung.json --model_dir a --batch_size 2",
        "histopathology_gan.py --config lung.json --model_dir b --device cuda:0",
        "histopathology_gan.py --config nowhere.json --model_dir c",
    ]
    _, out, err = many_ranks.run_lines(lines, 3, cohort)
    assert [o.splitlines()[-1] for o in out] == ["[2, 2, 2]"] * 3
    said = "".join(err).splitlines()
    words = ["batch_size 2: under 3, the processes", "cuda:0: with several processes each has its own", "nowhere.json"]
    once = {re.sub(r"rank \d: ", "", line) for line in said}
    assert len(once) == 3 and all(any(word in line for line in once) for word in words), said
    assert [sum(words[k] in line for line in said) for k in range(3)] == [1, 3, 3]  # each speaks before they have met


def test_a_folder_that_not_all_ranks_see_is_named(cohort):
    assert gan_toy.run(histopathology_gan, "--config lung.json --max_steps 2 --model_dir run") == 0
    (cohort / "elsewhere").mkdir()
    for name in ("data", "tiles", "checkpoints", "lung.json"):
        (cohort / "elsewhere" / name).symlink_to(cohort / name)
    words = [GAN, "--config", "lung.json", "--max_steps", 4, "--model_dir", "run"]
    processes = many_ranks.start(words, 2, [cohort, cohort / "elsewhere"])
    status, _, err = many_ranks.finish(processes)
    assert status == [2, 2], err
    (said,) = "".join(err).splitlines()
    assert "run: last.pt: rank 0 has" in said and "rank 1 has no such file" in said


SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=0 ] && shift
for k in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$k SLURM_LOCALID=$k "$@" & pids+=($!); done
echo "${pids[@]}" > pids
for pid in "${pids[@]}"; do wait $pid; status=$?; [ $status -gt ${worst:-0} ] && worst=$status; done
exit ${worst:-0}
"""
SCONTROL = '#!/bin/bash\nif [ "$1" = show ]; then echo 127.0.0.1; echo elsewhere; else echo "$@" >> requeued; fi\n'


def test_the_readmes_slurm_script_requeues_what_was_stopped(cohort):
    """With stand-ins for srun and scontrol: the script, its environment and its statuses, not Slurm."""
    text = (many_ranks.ROOT / "README.md").read_text()
    script = re.search(r"^#!/bin/bash\n#SBATCH.*?(?=^```)", text, re.MULTILINE | re.DOTALL)[0]
    ours = "histopathology_gan.py --config configs/residual_256.json --model_dir checkpoints/big --batch_size 128"
    assert ours in script and "#SBATCH --signal=USR1@120 --requeue" in script
    script = script.replace(ours, f"{GAN} --config lung.json --model_dir run --num_epochs 999 $MORE")
    for name, body in {"bin/srun": SRUN, "bin/scontrol": SCONTROL, "job": script}.items():
        (cohort / name).parent.mkdir(exist_ok=True)
        (cohort / name).write_text(body)
        (cohort / name).chmod(0o755)
    (cohort / "bin" / "python3").symlink_to(sys.executable)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": os.getpid(), "SLURM_NTASKS": 2}
    slurm |= {"SLURM_NTASKS_PER_NODE": 2, "SLURM_CPUS_PER_TASK": 1, "PATH": f"{cohort}/bin:{os.environ['PATH']}"}
    slurm |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if "site-packages" in p)}
    # What would fail again is not started again.
    (process,) = many_ranks.start_alone(["job"], cohort, program="bash", MORE="--batch_size 1", **slurm)
    (status,), _, (err,) = many_ranks.finish([process])
    assert status == 2 and "batch_size 1" in err, err
    assert not (cohort / "requeued").exists()
    (process,) = many_ranks.start_alone(["job"], cohort, program="bash", **slurm)
    until(lambda: steps_of("run") > 2)
    for pid in (cohort / "pids").read_text().split():  # as Slurm does before the time is over
        os.kill(int(pid), signal.SIGUSR1)
    (status,), _, (err,) = many_ranks.finish([process])
    assert status == 75 and "stopped by a signal" in err, err
    assert (cohort / "requeued").read_text() == f"requeue {os.getpid()}\n"
    step = load_checkpoint("run/last.pt", "gan_training")[0]["step"]
    (process,) = many_ranks.start_alone(["job"], cohort, program="bash", MORE=f"--max_steps {step + 1}", **slurm)
    (status,), (out,), (err,) = many_ranks.finish([process])
    assert status == 0 and f"going on after step {step}" in out, err
    assert len((cohort / "requeued").read_text().split()) == 2
