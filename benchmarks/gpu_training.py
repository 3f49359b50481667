"""Training for gpu.py: histopathology_gan.py's own loop, watched; its FLOPs; the kernels that take longest."""

import io
import json
import re
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_bench import Bench, Result, Sizes
from steps import GANStep, gan_settings
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from common.config import GANSettings
from common.run import Run

ROOT = Path(__file__).resolve().parent.parent
PER_SLIDE, TOP = 64, 15
BY_IMAGES = ("first_side", "grow_images", "schedule_images", "lr_final", "gamma_final", "augment", "augment_images")


class Watch:
    """Told of each step; after some it times as many as asked for, then traces as many again (on a GPU)."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.trace, self.seen = bench, folder / "trace.json", 0
        self.ms, self.ms_traced, self.busy = 0.0, 0.0, None  # of a step; share of the time with a kernel running
        self._since, self._profile = 0.0, None

    def step(self) -> None:
        """Start and stop the clock and the trace where it is time to."""
        self.seen += 1
        warm, steps = self.bench.sizes.warm, self.bench.sizes.steps
        if self.seen not in (warm, warm + steps, warm + 2 * steps):
            return
        self.bench.wait()
        ms = 1e3 * (time.perf_counter() - self._since) / steps
        if self.seen == warm + steps:
            self.ms = ms
        if self.bench.gpu:
            try:
                self._trace(ms * steps)
            except (RuntimeError, AssertionError, OSError, ValueError):  # the time that was taken stands without it
                traceback.print_exc(file=sys.stdout)
                self._profile = None
        self._since = time.perf_counter()

    def _trace(self, ms: float) -> None:
        warm, steps = self.bench.sizes.warm, self.bench.sizes.steps
        if self.seen == warm + steps:
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.__enter__()
        elif self._profile is not None:
            self._profile.__exit__(None, None, None)
            self.ms_traced = ms / steps
            self.busy = round(1e3 * kernel_seconds(self._profile, self.trace) / ms, 4)


class WatchedRun(Run):
    """A run that writes no checkpoint and tells its watch of each step."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        super().__init__(folder, {})
        self.watch = watch

    def save(self, name: str, kind: str, state: dict[str, Any]) -> str:
        """Leave no file."""
        return ""

    def after_step(self, epoch_ends: bool = False, every: float = 0) -> tuple[bool, bool]:
        """Called once a step, before anything is saved; Enough once the watch has seen all."""
        self.watch.step()
        if self.watch.seen == steps_of(self.watch.bench.sizes):
            raise Enough
        return False, False


class Enough(Exception):
    """All steps have been taken: the loop is left there, before it saves a model and draws a grid of tiles."""


def steps_of(sizes: Sizes) -> int:
    """Return how many steps are taken: to warm up, to be timed, to be traced."""
    return sizes.warm + 2 * sizes.steps


def trained(bench: Bench, cfg: GANSettings, eager: Result) -> Result:
    """Train by histopathology_gan.py's loop; return tiles/s, busy share of the time, FLOPs and share of the rate.

    Where a package of it is missing: by GANStep alone. `eager`: what this gave for the networks not compiled. Where
    they should have been compiled and are not, the reason is all there is: the times are those of eager mode.
    """
    latent = bench.sizes.latent if cfg.loss_type.endswith("vae") else 0
    found: Result = {"loop": "fit"}
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(bench, Path(folder))
        try:
            said = fit_watched(watch, WatchedRun(Path(folder) / "run", watch), cfg, latent)
        except ImportError as error:
            found = {"loop": "GANStep", "because": f"{type(error).__name__}: {error}"}
            said = "not compiled: GANStep does not"
            if not cfg.compile:
                steps_watched(watch, cfg, latent)
        finally:
            if cfg.compile:
                torch.compiler.reset()  # the next mode begins anew
    if cfg.compile and (reason := why_not_compiled(cfg.compile, said)):
        return found | {"not_compiled": reason}
    tiles_per_s = 1e3 * cfg.batch_size / watch.ms
    found["ms"] = round(watch.ms, 2)
    found["tiles_per_s"] = round(tiles_per_s, 1)
    if cfg.gan_type == "dcgan" and bench.peer_ms.get(cfg.batch_size):
        found["ratio"] = round(bench.peer_ms[cfg.batch_size] / watch.ms, 2)  # to torchgan's way
    if watch.busy is not None:
        found |= {"busy": watch.busy, "ms_traced": round(watch.ms_traced, 2)}
    work = eager.get("gflop_per_tile") or flops(bench, cfg, latent) / cfg.batch_size / 1e9
    rate = tiles_per_s * work * 1e9
    found |= {"gflop_per_tile": round(work, 4), "tflops": round(rate / 1e12, 4)}
    return found | ({"share_of_bf16_rate": round(rate / bench.rate, 4)} if bench.rate else {})


def fit_watched(watch: Watch, run: Run, cfg: GANSettings, latent: int) -> str:
    """Train by histopathology_gan.py's `fit` until the watch has seen all; return what it printed, and print it."""
    from histopathology_gan import fit
    from sources.gan_expression import Expression

    last = steps_of(watch.bench.sizes) + 1  # within the first epoch, whose end would save
    cohort = made_up_cohort(watch.bench.sizes.side, last * cfg.batch_size * cfg.critic_steps)
    cfg = replace(cfg, max_steps=last, num_epochs=1, log_interval=watch.bench.sizes.steps)
    source = torch.Generator().manual_seed(0)
    profiles = torch.randn(len(cohort.slides), latent, generator=source) if latent else None
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            fit(run, cohort, Expression(profiles, profiles), cfg, watch.bench.device, None)
    except Enough:
        pass
    finally:
        print(said.getvalue(), end="", flush=True)
    return said.getvalue()


def steps_watched(watch: Watch, cfg: GANSettings, latent: int) -> None:
    """Take GANStep's steps until the watch has seen all."""
    step = GANStep(cfg, watch.bench.device, latent)
    for number in range(1, steps_of(watch.bench.sizes) + 1):
        step(number)
        watch.step()


def why_not_compiled(mode: str, said: str) -> str | None:
    """Return why the networks were not compiled, from what `fit` printed; None where they were."""
    if reason := re.search(r"not compiled: (.*)", said):
        return reason[1]
    return None if f"compiled, {mode}" in said else "the training does not say that it compiled them"


class Flops(TorchDispatchMode):
    """Adds up the FLOPs of convolutions and matrix products by torch's formulas.

    Not FlopCounterMode: its notes on modules do not go with the gradient of a gradient.
    """

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if (formula := flop_registry.get(function._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=made)
        return made


def flops(bench: Bench, cfg: GANSettings, latent: int) -> float:
    """Return the FLOPs of a step in eager mode: those with penalties (one in penalty_every) and without, averaged."""
    step = GANStep(cfg, bench.device, latent)
    counts = []
    for number in (0, 1):
        with Flops() as counter:
            step(number)
        counts.append(counter.total)
    return (counts[0] + (cfg.penalty_every - 1) * counts[1]) / cfg.penalty_every


def kernel_seconds(trace: profile, path: Path) -> float:
    """Return the seconds in which at least one kernel ran, from the trace's events; copies and fills do not count."""
    trace.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    total, reached = 0.0, float("-inf")
    for start, end in spans:  # microseconds
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def longest_kernels(bench: Bench, cfg: GANSettings) -> Result:
    """Print and save the table of the kernels that took longest in one round of steps."""
    step = GANStep(cfg, bench.device, bench.sizes.latent)
    for number in range(2):
        step(number)
    bench.wait()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.gpu
    with profile(activities=activities) as trace:
        for number in range(cfg.penalty_every):
            step(number)
        bench.wait()
    key = "self_device_time_total" if bench.gpu else "self_cpu_time_total"
    table = trace.key_averages().table(sort_by=key, row_limit=TOP, max_name_column_width=90)
    print(table, flush=True)
    if bench.out is None:
        return {"steps": cfg.penalty_every}
    path = bench.out.with_suffix(".kernels.txt")
    path.write_text(table)
    return {"steps": cfg.penalty_every, "table": path.name}


# ---- What the parts are made of ----


def residual(bench: Bench, channels: int, batch: int, precision: str, **more: Any) -> GANSettings:
    """Return configs/residual_lung.json's settings with other sizes, without what changes with the images shown."""
    asked = json.loads((ROOT / "configs" / "residual_lung.json").read_text())
    left_out = ("path_csv", "patch_data_path", "device", "flag", *BY_IMAGES)
    asked = {k: v for k, v in asked.items() if k not in left_out}
    asked |= {"img_size": bench.sizes.side, "step_channels": channels, "batch_size": batch, "precision": precision}
    asked |= {"cache": "gpu" if bench.gpu else "ram", "n_workers": 0}
    return gan_settings(**(asked | more))


class MadeUpStore:
    """A slide's tiles as a TileStore gives them, from memory: nothing is read or decoded."""

    mpp = 0.5

    def __init__(self, slide: str, images: np.ndarray) -> None:
        self.slide, self.images, self.tile_size = slide, images, images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        """Return tile `index` as uint8 RGB."""
        return self.images[index]


def made_up_cohort(side: int, tiles: int) -> Any:
    """Return a cohort of at least so many tiles of `side` pixels, PER_SLIDE a slide, one slide a donor.

    The slides share PER_SLIDE pictures, noise on pink, so that many tiles take hardly any memory of the machine.
    """
    import pandas as pd

    from datasets.cohort import COLUMNS, Cohort
    from datasets.tileset import TileSet

    rng = np.random.default_rng(0)
    images = rng.normal((214, 150, 190), 20, (PER_SLIDE, side, side, 3)).clip(0, 255).astype(np.uint8)
    donors = [f"GTEX-{i:05d}" for i in range(-(-tiles // PER_SLIDE))]
    made = TileSet([MadeUpStore(f"{donor}-0125", images) for donor in donors], side)
    slides = pd.DataFrame(
        [(s.slide, d, "lung", "train") for s, d in zip(made.stores, donors, strict=True)], columns=COLUMNS
    )
    slides = slides.assign(row=np.arange(len(donors)), n_tiles=PER_SLIDE)
    return Cohort(None, made, made.slide_index, slides, [])
