"""Several processes on one job: shares, sums, what is agreed, a rank that is gone, and how they are started."""

import json
import os
import signal
import subprocess
import sys
import time

import many_ranks
import pytest
import torch

from common import distributed, launching
from common.distributed import ALONE, Ranks, current, joined
from common.errors import InputError
from common.joint_sums import joint_sum, sum_gradients

SCRIPT = """
import json, os, signal, sys, time, torch
from common import joint_sums
from common.distributed import alone, current, joined, launch
from common.joint_sums import joint_sum, sum_gradients
from common.together import agree
from common.errors import InputError, Stopped, command_parser, run_command, warn

def main(args):
    if args.parallel:
        return launch(args.parallel, [__file__, *args.words])
    if args.what == "early" or args.what + os.environ["RANK"] == "early_1":
        raise InputError("a GPU is broken")
    if args.what == "early_":
        return 0
    with joined(torch.device("cpu")) as ranks:
        assert current() is ranks
        return globals()[args.what](ranks)

def talk(ranks):
    k = ranks.rank
    x = torch.arange(6.0).reshape(2, 3) + k
    y = x.clone()
    assert ranks.sum(y) is y
    turned = x.clone().t()
    ranks.sum(turned)
    rows = ranks.gather(torch.full((k + 1, 2), k, dtype=torch.int16))
    flags = ranks.gather(torch.tensor([k == 1], dtype=torch.bool))
    none = ranks.gather(torch.empty(0, 3))
    with alone():
        assert current().world == 1 and joint_sum(x) is x
    w = torch.tensor([1.0 + k, 2.0], requires_grad=True)
    total = joint_sum(w)
    slope, = torch.autograd.grad((total ** 2).sum() * (k + 1), w, create_graph=True)
    second, = torch.autograd.grad(slope.sum(), w)
    agree("same", "a")
    found = {"sum": y.tolist(), "turned": turned.tolist(), "rows": [r.tolist() for r in rows],
             "flags": [bool(f) for f in flags], "none": [list(n.shape) for n in none],
             "any": [ranks.any(k == 1), ranks.any(False)], "slope": slope.tolist(), "second": second.tolist(),
             "types": [str(r.dtype) for r in rows]}
    with open(f"found_{k}.json", "w") as file:
        json.dump(found, file)
    print("printed")
    warn("warned")

def gradients(ranks):
    joint_sums.BUCKET, cat, copied = 10, torch.cat, []
    torch.cat = lambda parts: copied.append([p.numel() for p in parts]) or cat(parts)
    numbers = torch.Generator().manual_seed(ranks.rank)
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (2,), (3, 2), (4, 3), (50, 7))]
    for w in weights:
        w.grad = torch.randn(w.shape, generator=numbers)
    weights[3].grad = torch.randn(3, 4, generator=numbers).t()  # its numbers lie in another order
    before = [w.grad.clone(memory_format=torch.contiguous_format) for w in weights]
    places = [w.grad.data_ptr() for w in weights]
    sum_gradients(torch.optim.SGD(weights, lr=1))
    whole = [before[:1], before[1:3], before[3:4], before[4:]]
    flat = cat([ranks.sum(cat([g.flatten() for g in part])) for part in whole])
    with open(f"found_{ranks.rank}.json", "w") as file:
        json.dump({"copied": copied, "same": torch.equal(flat, cat([w.grad.flatten() for w in weights])),
                   "in_place": places == [w.grad.data_ptr() for w in weights], "first": flat[0].item()}, file)

def differ(ranks):
    agree("the tables", f"digest {ranks.rank}")

def bad(ranks, rank=1):
    if ranks.rank == rank:
        raise InputError("tile 7 is damaged")
    ranks.wait()

def bad_0(ranks):
    bad(ranks, 0)

def all_bad(ranks):
    raise InputError("batch_size too small")

def die(ranks, rank=1):
    if ranks.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.wait()

def die_0(ranks):
    die(ranks, 0)

def hang(ranks):
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.wait()

def stop(ranks):
    flag = []
    signal.signal(signal.SIGTERM, lambda *_: flag.append(1))
    open(f"ready_{ranks.rank}", "w").close()
    while not ranks.any(bool(flag)):
        time.sleep(0.05)
    raise Stopped("stopped")

parser = command_parser("test")
parser.add_argument("what")
parser.add_argument("--parallel", type=int, default=0)
sys.exit(run_command(main, parser))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "job.py").write_text(SCRIPT)
    return tmp_path


def launched(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(many_ranks.ROOT), "RANK_TIMEOUT": "60"}
    words = [sys.executable, "job.py", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=folder, env=environment, **pipes)


def test_with_one_process_nothing_happens(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    x = torch.ones(2, requires_grad=True)
    with joined(torch.device("cpu")) as ranks:
        assert ranks is ALONE is current() and ranks.main
        assert ranks.sum(x) is x and ranks.gather(x)[0] is x and ranks.share(5) == slice(0, 5)
        assert ranks.any(True) is True and ranks.any(False) is False
        ranks.wait()
        sum_gradients(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1))
        assert joint_sum(x) is x
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc_per_node=1
    with joined(torch.device("cpu")) as ranks:
        assert ranks is ALONE


@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_contiguous_whole_and_even(n, world):
    shares = [range(n)[Ranks(k, world).share(n)] for k in range(world)]
    assert [i for share in shares for i in share] == list(range(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_a_gradient_that_fills_a_bucket_alone_is_summed_where_it_lies_to_the_same_bit(script):
    status, _, err = many_ranks.run(["job.py", "gradients"], 3, script)
    assert status == [0, 0, 0], err
    found = [json.loads((script / f"found_{k}.json").read_text()) for k in range(3)]
    assert all(own["same"] and own["in_place"] and own["copied"] == [[2, 6]] for own in found)
    first = sum(torch.randn(3, 4, generator=torch.Generator().manual_seed(k))[0, 0].item() for k in range(3))
    assert [own["first"] for own in found] == [pytest.approx(first, abs=1e-6)] * 3


def test_what_ranks_tell_one_another(script):
    status, out, err = many_ranks.run(["job.py", "talk"], 3, script)
    assert status == [0, 0, 0], err
    assert out == ["printed\n", "", ""] and err == ["warning: warned\n", "", ""]
    found = [json.loads((script / f"found_{k}.json").read_text()) for k in range(3)]
    x = torch.arange(6.0).reshape(2, 3)
    for own in found:
        assert own["sum"] == (3 * x + 3).tolist() and own["turned"] == (3 * x + 3).t().tolist()
        assert own["rows"] == [[[k, k]] * (k + 1) for k in range(3)] and own["types"] == ["torch.int16"] * 3
        assert own["flags"] == [False, True, False] and own["any"] == [True, False] and own["none"] == [[0, 3]] * 3
        # total = (6, 6); d/dw of all ranks' losses, (1 + 2 + 3) total^2, is 12 total; its sum's slope is again summed
        assert own["slope"] == [72.0, 72.0] and own["second"] == [36.0, 36.0]


def test_what_is_not_the_same_everywhere_is_refused(script):
    status, _, err = many_ranks.run(["job.py", "differ"], 2, script)
    assert status == [2, 2], err
    (said,) = "".join(err).splitlines()
    assert "the tables: rank 0 has digest 0, rank 1 has digest 1" in said


def test_an_error_is_one_line_whichever_rank_has_it(script):
    status, _, err = many_ranks.run(["job.py", "all_bad"], 3, script)
    assert status == [2, 2, 2] and len("".join(err).splitlines()) == 1 and "batch_size too small" in "".join(err)
    status, _, err = many_ranks.run(["job.py", "bad"], 2, script)
    assert status == [2, 2] and err == ["", "job.py: error: rank 1: tile 7 is damaged\n"]
    status, _, err = many_ranks.run(["job.py", "bad_0"], 3, script)
    assert status == [2, 2, 2] and err == ["job.py: error: tile 7 is damaged\n", "", ""]


@pytest.mark.parametrize("world", [2, 3])
def test_a_rank_that_is_killed_is_named_and_the_others_leave(script, world):
    status, _, err = many_ranks.run(["job.py", "die"], world, script)
    assert status[1] == -signal.SIGKILL and [s for k, s in enumerate(status) if k != 1] == [75] * (world - 1), err
    (said,) = "".join(err).splitlines()
    assert f"rank 1 of {world} is gone" in said and "type the same command again" in said


def test_where_the_rank_with_the_store_is_killed_each_says_so_in_one_line(script):
    status, _, err = many_ranks.run(["job.py", "die_0"], 3, script)
    assert status == [-signal.SIGKILL, 75, 75] and err[0] == ""
    for rank in (1, 2):
        (said,) = err[rank].splitlines()
        assert f"rank {rank}: rank 0 of 3 is gone" in said


def test_a_rank_that_hangs_is_named_after_a_bounded_wait(script):
    started = many_ranks.start(["job.py", "hang"], 2, script, RANK_TIMEOUT=5)
    _, said = started[0].communicate(timeout=60)
    started[1].kill()
    started[1].communicate()
    assert started[0].returncode == 75
    assert "rank 1 of 2 does not answer within 5 s; RANK_TIMEOUT=10 in the environment allows more" in said


def test_ranks_that_do_not_come_are_told_of(script):
    started = many_ranks.start(["job.py", "talk"], 2, script, RANK_TIMEOUT=5)
    started[1].kill()
    _, said = started[0].communicate(timeout=60)
    started[1].communicate()
    assert started[0].returncode == 2 and "not all 2 ranks met at 127.0.0.1:" in said.splitlines()[-1]


def test_launch_starts_ranks_and_returns_their_status(script):
    process = launched(script, "talk", "--parallel", "2")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "printed\n", "warning: warned\n")
    assert (script / "found_1.json").exists() and not (script / "found_2.json").exists()
    process = launched(script, "--parallel=2", "bad")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err == "job.py: error: rank 1: tile 7 is damaged\n"
    process = launched(script, "die", "--parallel", "2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "rank 1 of 2 is gone" in err


def test_what_is_wrong_before_the_ranks_have_met_is_said(script):
    status, _, err = many_ranks.run(["job.py", "early_"], 2, script)
    assert status == [0, 2] and err == ["", "job.py: error: rank 1: a GPU is broken\n"]
    process = launched(script, "early", "--parallel", "3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.count("\n") == 1 and "a GPU is broken" in err, "once"


LEAVING = """
import sys, threading, time, torch.distributed
from common import distributed
from common.errors import InputError, command_parser, run_command

def main(args):
    error = InputError("tile 7 is damaged")
    if sys.argv[1:]:
        distributed.FAREWELL, distributed._store = 0.1, torch.distributed.HashStore()
        distributed._leave(distributed.Ranks(1, 2), error, ())
        time.sleep(300)
    threading.Thread(target=time.sleep, args=(300,)).start()  # as a GPU that waits for a rank that is gone
    error.at_once = True
    raise error

parser = command_parser("test")
parser.add_argument("how", nargs="?")
sys.exit(run_command(main, parser))
"""


@pytest.mark.parametrize("words", [[], ["hangs on the way"]])
def test_an_error_where_a_gpu_waits_for_ever_leaves_with_its_own_status(tmp_path, words):
    (tmp_path / "job.py").write_text(LEAVING)
    status, _, err = many_ranks.finish(
        many_ranks.start_alone(["job.py", *words], tmp_path, PYTHONPATH=many_ranks.ROOT), 60
    )
    assert status == [2], err


def test_a_gpu_that_is_too_small_is_no_lost_rank():
    def action():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        distributed._together(action)


def test_launch_passes_a_signal_on(script):
    process = launched(script, "stop", "--parallel", "2")
    until = time.monotonic() + 60
    while not all((script / f"ready_{k}").exists() for k in range(2)) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and err == "job.py: error: stopped; type the same command again to go on\n"


def test_a_process_for_each_gpu_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="use --parallel N"):
        launching.launch(1, ["x.py"])


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="MASTER_ADDR, MASTER_PORT not set"), joined(torch.device("cpu")):
        pass
