"""benchmarks/gpu.py runs for minutes on a GPU: what it counts, and that one failure leaves the rest."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_bench  # noqa: E402
import gpu_training  # noqa: E402

from common.config import GANSettings  # noqa: E402

NOT_THERE = ("openslide", "torchgan", "torchvision", "pandas", "pyarrow", "anndata", "PIL", "sklearn")


def bench_for(seconds=60):
    return gpu_bench.Bench(torch.device("cpu"), gpu_bench.QUICK, 0.25, None, time.monotonic() + seconds)


def test_it_starts_without_the_packages_that_a_gpu_node_may_lack():
    block = "".join(f"sys.modules[{name!r}] = None; " for name in NOT_THERE)
    code = f"import sys; {block}sys.path.insert(0, 'benchmarks'); import gpu; gpu.build_parser()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_flops_are_those_of_torchs_counter():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 2))
    x = torch.randn(4, 3, 8, 8)
    with FlopCounterMode(display=False) as expected:
        network(x).sum().backward()
    with gpu_training.Flops() as found:
        network(x).sum().backward()
    assert found.total == expected.get_total_flops() > 2 * 4 * 36 * 3 * 9 * 5


def test_time_in_kernels_counts_what_runs_at_once_only_once(tmp_path):
    spans = [("kernel", 0, 10), ("kernel", 5, 10), ("kernel", 30, 5), ("gpu_memcpy", 50, 9), ("kernel", 6, 2)]
    events = [{"cat": cat, "ts": ts, "dur": dur} for cat, ts, dur in spans] + [{"ph": "M"}]
    trace = SimpleNamespace(export_chrome_trace=lambda path: Path(path).write_text(json.dumps({"traceEvents": events})))
    assert gpu_training.kernel_seconds(trace, tmp_path / "trace.json") == pytest.approx(20e-6)


def go_on_whatever_fails():
    """As models/compiling.py does; the alarm must come through."""
    with suppress(Exception):
        time.sleep(5)
    return {"x": 1}


def test_a_variant_that_fails_or_takes_too_long_is_reported(capsys):
    bench = bench_for()
    assert "ZeroDivisionError" in bench.attempt("bad", lambda: {"x": 1 / 0})["error"]
    assert "took more than" in bench.attempt("slow", go_on_whatever_fails, seconds=1.05)["error"]
    assert bench.attempt("good", lambda: {"x": 1}) == {"x": 1}
    assert "no time left" in bench_for(0).attempt("late", lambda: {"x": 1})["error"]
    assert "good" in capsys.readouterr().out


def test_a_part_that_fails_leaves_the_others_and_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu.PARTS, "dcgan", (lambda bench: 1 / 0, 10))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    out = tmp_path / "gpu.jsonl"
    words = ["--device", "cpu", "--quick", "--parts", "dcgan", "device", "--out", str(out)]
    assert gpu.main(gpu.build_parser().parse_args(words)) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert "ZeroDivisionError" in first["error"] and second["name"] == "CPU" and second["bf16"]["tflops"] > 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["device"]["name"] == "CPU"


def test_training_and_penalties_run(monkeypatch, capsys):
    def save(*_):
        raise AssertionError("nothing is to be saved among the steps that are timed, or after them")

    monkeypatch.setattr(gpu, "MODES", ())  # compiling takes a minute
    monkeypatch.setattr(gpu_training.WatchedRun, "save", save)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    words = ["--device", "cpu", "--quick", "--parts", "training", "penalties"]
    assert gpu.main(gpu.build_parser().parse_args(words)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    variants = {k: v for k, v in (result["training"] | result["penalties"]).items() if isinstance(v, dict)}
    assert len(variants) == 9 and all(v.get("ms") or v.get("steps") for v in variants.values()), variants
    assert all(v["loop"] == "fit" for k, v in variants.items() if "batch" in k)


def test_the_residual_settings_do_not_change_with_the_images_shown():
    cfg = gpu_training.residual(bench_for(), 4, 4, "fp32")
    expected = GANSettings()
    assert cfg.gan_type == "residual" and [getattr(cfg, key) for key in gpu_training.BY_IMAGES] == [
        getattr(expected, key) for key in gpu_training.BY_IMAGES
    ]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("runs/x: compiled, default\nruns/x: 9 steps", None),
        ("runs/x: not compiled: RuntimeError: no compiler\nmore", "RuntimeError: no compiler"),
        ("runs/x: 9 steps", "the training does not say that it compiled them"),
    ],
)
def test_what_was_not_compiled_is_told_by_what_fit_prints(said, reason):
    assert gpu_training.why_not_compiled("default", said) == reason


def test_where_compiling_fails_no_time_is_booked(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: 1 / 0)
    cfg = replace(gpu_training.residual(bench_for(), 4, 4, "fp32"), compile="default")
    found = gpu_training.trained(bench_for(), cfg, {})
    assert list(found) == ["loop", "not_compiled"] and "ZeroDivisionError" in found["not_compiled"]


def test_the_peer_of_the_dcgan_has_its_weights_as_torchgan_has_them(monkeypatch):
    seen = []
    monkeypatch.setattr(gpu, "peer_step", lambda *networks: seen.extend(networks[:2]) or (lambda *_: None))
    found = gpu.part_dcgan(bench_for())
    assert len(seen) == 4 and {"ratio", "ratio_no_tf32"} < set(found)
    assert all(p.is_contiguous() for network in seen for p in network.parameters())
