"""How well a data-centre GPU is used: training, sampling, features; in 10 minutes, nothing but the repository needed.

    python benchmarks/gpu.py --out gpu.jsonl
    python benchmarks/gpu.py --device cpu --quick          # the same parts, small: does it run?

  device      name, rate of large bf16 matrix products (TFLOP/s): what the shares below are shares of
  dcgan       one step at the paper's size, 256 px, against the way torchgan 0.1.0 takes it: fp32, a fake batch for each
              loss, torch's default Adam; with torch's defaults (TF32 in convolutions: `ratio`), and without TF32
              (`ratio_no_tf32`). torchgan's own loss functions where it is installed, else the same formulas; the
              networks are ours with its module tree, run layer by layer, weights laid out in memory as its
  training    histopathology_gan.py's own loop within one epoch, tiles on the GPU, on configs/residual_lung.json's sizes
              at full side, wider ones and the DCGAN: tiles/s, share of the bf16 rate (FLOPs counted by torch's
              formulas, in eager mode), share of the time in which a GPU kernel runs; the first variant also compiled;
              where the share of the rate is under --bar, the longest kernels
  sampling    tiles/s of generate_tiles
  features    tiles/s of the extractors (Inception with random weights), ms of a beta-VAE step of 19,198 genes
  penalties   ms of a residual step with exact penalties, with differences, with none

A part or variant that fails, or whose packages are not installed, is reported and the rest goes on; --out gets a line
of JSON after each part, and the last line printed is the JSON of all. Tiles are made up. Timings wait for the GPU.
"""

import argparse
import gc
import io
import json
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gan_step import BETAS, RATE_C, RATE_G, loss_functions, peer_step, plain_forward
from steps import GANStep, gan_settings, timed
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from common.config import BetaVAESettings, GANSettings
from common.run import Run
from models.betavae import BetaVAE, beta_vae_loss
from models.compiling import MODES
from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANDiscriminator, DCGANGenerator
from models.generate import generate_tiles
from models.networks import build_generator, generator_args

ROOT = Path(__file__).resolve().parent.parent
PER_SLIDE, TOP = 64, 15
BY_IMAGES = ("first_side", "grow_images", "schedule_images", "lr_final", "gamma_final", "augment", "augment_images")
Result = dict[str, Any]


@dataclass
class Sizes:
    """How large things are; `QUICK` is for a check on a CPU."""

    matrix: int = 8192
    side: int = 256
    dcgan: tuple[int, int] = (2048, 64)  # encoding_dims, step_channels
    dcgan_batches: tuple[int, ...] = (8, 64)
    residual: tuple[tuple[int, int], ...] = ((32, 32), (64, 32), (32, 128))  # step_channels, batch
    latent: int = 2048
    warm: int = 8  # steps of a training that are not timed: one round of penalties
    steps: int = 48  # that are timed, and again that are traced
    tiles: int = 512  # drawn
    feature_batch: int = 64
    genes: int = 19_198
    widths: tuple[int, int, int] = (6000, 4000, 2048)  # of the beta-VAE
    inception_side: int = 299


QUICK = Sizes(256, 32, (32, 4), (8,), ((4, 4),), 16, 2, 4, 16, 2, 500, (64, 32, 16), 96)


@dataclass
class Bench:
    """What the parts share: the device, the sizes, the time left, and the bf16 rate once it is known."""

    device: torch.device
    sizes: Sizes
    bar: float
    out: Path | None
    ends: float  # time.monotonic()
    rate: float = 0.0  # FLOP/s
    peer_ms: dict[int, float] = field(
        default_factory=dict
    )  # batch -> ms of a DCGAN step, torchgan's way, torch's defaults

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU to wait for and to trace."""
        return self.device.type == "cuda"

    def autocast(self, precision: str) -> Any:
        """Return what `precision` runs in."""
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def ms(self, action: Callable[[], Any], warm: int = 3) -> float:
        """Return the median milliseconds of `action` on the device."""
        for _ in range(warm if self.gpu else 1):
            action()
        self.wait()
        return round(1e3 * timed(action, self.device, least=5 if self.gpu else 1, enough=1.0 if self.gpu else 0)[0], 3)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def attempt(self, label: str, action: Callable[[], Result], seconds: float = 90, quiet: bool = False) -> Result:
        """Return what `action` found, within `seconds`; where it fails, the reason. Prints it, unless `quiet`."""
        seconds = min(seconds, self.ends - time.monotonic())
        try:
            if seconds <= 1:
                raise OutOfTime("no time left")
            if self.gpu:
                gc.collect()  # what refers to itself may hold memory of the GPU
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            with limit(seconds):
                found = action()
            if self.gpu:
                found["peak_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        except (Exception, OutOfTime) as error:
            traceback.print_exc(file=sys.stdout)
            found = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        if not quiet or "error" in found:
            print(f"  {label}: {json.dumps(found)}", flush=True)
        return found


class OutOfTime(BaseException):
    """Time is up. No Exception: code that goes on whatever fails, as models/compiling.py does, must not catch it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """OutOfTime once `seconds` have passed, as soon as Python has the word again."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def tf32_allowed(backend: Any, allowed: bool) -> Iterator[None]:
    """Have products of fp32 numbers rounded to TF32, or not. By default torch does so in convolutions only."""
    before = backend.allow_tf32
    backend.allow_tf32 = allowed
    try:
        yield
    finally:
        backend.allow_tf32 = before


# ---- Parts ----


def part_device(bench: Bench) -> Result:
    """Name of the device; rates of square matrix products in bf16, TF32 and fp32, TFLOP/s."""
    name = torch.cuda.get_device_name(bench.device) if bench.gpu else "CPU"
    result: Result = {"name": name, "torch": torch.__version__, "python": sys.version.split()[0]}
    if bench.gpu:
        result |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        result["memory_gb"] = round(torch.cuda.get_device_properties(bench.device).total_memory / 2**30)

    def rate(dtype: torch.dtype, tf32: bool = False) -> Result:
        n = bench.sizes.matrix
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        with tf32_allowed(torch.backends.cuda.matmul, tf32):
            return {"tflops": round(2 * n**3 / bench.ms(lambda: a @ b, warm=10) / 1e9, 4)}

    result["bf16"] = bench.attempt("bf16", lambda: rate(torch.bfloat16))
    result["tf32"] = bench.attempt("TF32", lambda: rate(torch.float32, tf32=True))
    result["fp32"] = bench.attempt("fp32", lambda: rate(torch.float32))
    bench.rate = result["bf16"].get("tflops", 0.0) * 1e12
    return result


def part_dcgan(bench: Bench) -> Result:
    """ms of a DCGAN step: torchgan's way, and ours in fp32 and bf16; the ratio at the best setting of ours.

    `ratio`: to torchgan's way with torch's defaults, as a user gets it; ours has the same.
    """
    dims, channels = bench.sizes.dcgan
    side, result = bench.sizes.side, {}
    losses, whose = loss_functions()
    result["peer"] = f"the way of torchgan 0.1.0, {whose}"

    def peer(batch: int, tf32: bool) -> Result:
        torch.manual_seed(0)
        networks = DCGANGenerator(dims, side, channels), DCGANDiscriminator(side, channels)
        layout = {"device": bench.device, "memory_format": torch.contiguous_format}  # ours are channels last
        generator, critic = (plain_forward(network.to(**layout)) for network in networks)
        step = peer_step(generator, critic, losses)
        real = torch.rand(batch, 3, side, side, device=bench.device) * 2 - 1
        with tf32_allowed(torch.backends.cudnn, tf32):
            return {"ms": bench.ms(lambda: step(real, torch.randn(batch, dims, device=bench.device), 0.3))}

    def ours(batch: int, precision: str, **more: Any) -> Result:
        values = {"gan_type": "dcgan", "loss_type": "wgangp", "penalty_per": "batch", "precision": precision}
        values |= {"lr_generator": RATE_G, "lr_critic": RATE_C, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1]}
        sizes = {"img_size": side, "encoding_dims": dims, "step_channels": channels, "batch_size": batch}
        step = GANStep(gan_settings(**values, **sizes, **more), bench.device)
        return {"ms": bench.ms(lambda: step(1))}

    for batch in bench.sizes.dcgan_batches:
        found: Result = {}
        for name, tf32 in (("torchgan's way", True), ("torchgan's way, no TF32", False)):
            found[name] = bench.attempt(f"batch {batch}, {name}", lambda b=batch, t=tf32: peer(b, t), seconds=25)
        for precision in ("fp32", "bf16"):
            label = f"batch {batch}, ours, {precision}"
            found[precision] = bench.attempt(label, lambda b=batch, p=precision: ours(b, p), seconds=25)
        bench.peer_ms[batch] = found["torchgan's way"].get("ms", 0.0)
        times = [found[p]["ms"] for p in ("fp32", "bf16") if "ms" in found[p]]
        for key, name in (("ratio", "torchgan's way"), ("ratio_no_tf32", "torchgan's way, no TF32")):
            if times and "ms" in found[name]:
                found[key] = round(found[name]["ms"] / min(times), 2)
        result[f"batch {batch}"] = found
    for key in ("ratio", "ratio_no_tf32"):
        result[key] = best(result, key)
    return result


def part_training(bench: Bench) -> Result:
    """Tiles/s, share of the bf16 rate, share of the time with a kernel running, by the command's own loop."""
    sizes, (dims, channels) = bench.sizes, bench.sizes.dcgan
    first = sizes.residual[0]
    variants = {
        f"residual, {c} channels, batch {b}": (lambda p, c=c, b=b: residual(bench, c, b, p)) for c, b in sizes.residual
    }
    for batch in sizes.dcgan_batches:
        values = {"encoding_dims": dims, "step_channels": channels, "batch_size": batch, "img_size": sizes.side}
        values |= {"loss_type": "wgan", "cache": "gpu" if bench.gpu else "ram"}
        variants[f"dcgan, batch {batch}"] = lambda p, values=values: gan_settings(**values, precision=p)
    result: Result = {}
    for mode in ("", *MODES):
        for name, settings in list(variants.items())[: 1 if mode else None]:
            for precision in ("bf16", "fp32") if name == next(iter(variants)) and not mode else ("bf16",):
                label = f"{name}, {precision}"
                cfg = replace(settings(precision), compile=mode)
                eager = result.get(label, {})
                label += f", compiled {mode}" if mode else ""
                result[label] = bench.attempt(label, lambda c=cfg, e=eager: trained(bench, c, e), seconds=60)
    for key in ("share_of_bf16_rate", "busy", "ratio"):
        result[f"best {key}"] = best(result, key)
    share = best({k: v for k, v in result.items() if k.startswith("residual")}, "share_of_bf16_rate")
    result["residual, best share"] = share
    if share is not None and share < bench.bar:
        cfg = residual(bench, *first, "bf16")
        result["kernels"] = bench.attempt("longest kernels", lambda: longest_kernels(bench, cfg))
    return result


def part_sampling(bench: Bench) -> Result:
    """Tiles/s of generate_tiles (16 at a time, noise by the CPU) and of the network alone, 64 at a time."""
    result, n = {}, bench.sizes.tiles
    dims, channels = bench.sizes.dcgan
    wide, _ = bench.sizes.residual[0]
    folded = DCGANGenerator(dims, bench.sizes.side, channels).eval()
    folded.fold()
    generators = {
        "dcgan": (ConditionedGenerator(folded, InputRule(), dims), None),
        "residual": (
            build_generator(generator_args(residual(bench, wide, 1, "fp32"), bench.sizes.latent)),
            torch.randn(bench.sizes.latent),
        ),
    }
    for name, (generator, c) in generators.items():
        generator.to(bench.device).eval()
        for precision in ("fp32", "bf16"):

            def draw(generator=generator, c=c, precision=precision) -> Result:
                generator = deepcopy(generator)
                if precision == "bf16":
                    generator.to_bf16()  # as sources/gan.py does for --precision bf16

                def command() -> None:
                    for _ in generate_tiles(generator, n, 1, c, device=bench.device):
                        pass

                noise = torch.randn(min(n, 64), generator.noise_dims, device=bench.device)
                shown = None if c is None else c.to(bench.device).expand(len(noise), -1)
                seconds = bench.ms(command, warm=1) / 1e3
                with torch.inference_mode():
                    alone = bench.ms(lambda: generator(noise, shown)) / 1e3
                return {"tiles_per_s": round(n / seconds, 1), "network_tiles_per_s": round(len(noise) / alone, 1)}

            result[f"{name}, {precision}"] = bench.attempt(f"{name}, {precision}", draw)
    return result


def part_features(bench: Bench) -> Result:
    """Tiles/s of the extractors; ms of a beta-VAE step."""
    from models.features import Extractor, fid_inception, load_extractor

    sizes, result = bench.sizes, {}
    images = np.random.default_rng(0).integers(0, 256, (sizes.feature_batch, sizes.side, sizes.side, 3), np.uint8)

    def inception() -> Extractor:
        network = fid_inception()
        network.fc = network.dropout = torch.nn.Identity()
        return Extractor("inception", network, "", sizes.inception_side, (0.5,) * 3, (0.5,) * 3, False, bench.device)

    def lite0() -> Extractor:
        return load_extractor("efficientnet_lite0", device=bench.device)

    def extract(make: Callable[[], Extractor], precision: str) -> Result:
        extractor = make()
        with bench.autocast(precision):
            return {"tiles_per_s": round(1e3 * len(images) / bench.ms(lambda: extractor(images)), 1)}

    def vae(precision: str) -> Result:
        paper, (first, second, latent) = BetaVAESettings(), sizes.widths
        model = BetaVAE(sizes.genes, [first, second, latent], [second, first], latent).to(bench.device).train()
        adam = torch.optim.Adam(model.parameters(), lr=paper.lr, fused=True)
        x = torch.randn(paper.batch_size, sizes.genes, device=bench.device)

        def step() -> None:
            with bench.autocast(precision):
                parts = model(x)
            loss = beta_vae_loss(x, *(part.float() for part in parts), beta=paper.beta)["total"]
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()

        return {"ms": bench.ms(step)}

    for precision in ("fp32", "bf16"):
        for name, make in (("inception", inception), ("efficientnet_lite0", lite0)):
            label = f"{name}, {precision}"
            result[label] = bench.attempt(label, lambda m=make, p=precision: extract(m, p))
        result[f"beta-VAE, {precision}"] = bench.attempt(f"beta-VAE step, {precision}", lambda p=precision: vae(p))
    return result


def part_penalties(bench: Bench) -> Result:
    """ms of a residual step by the form of its penalties."""
    channels, batch = bench.sizes.residual[0]
    result = {}
    for precision in ("fp32", "bf16"):
        for form, every in (("none", 1 << 30), ("exact", 1), ("difference", 1)):

            def step(precision: str = precision, form: str = form, every: int = every) -> Result:
                more = {} if form == "none" else {"penalty_form": form}
                cfg = residual(bench, channels, batch, precision, penalty_every=every, **more)
                one = GANStep(cfg, bench.device, bench.sizes.latent)
                return {"ms": bench.ms(lambda: one(1))}

            result[f"{form}, {precision}"] = bench.attempt(f"{form}, {precision}", step)
    return result


PARTS: dict[str, tuple[Callable[[Bench], Result], float]] = {  # and the seconds that each may take
    "device": (part_device, 20),
    "dcgan": (part_dcgan, 100),
    "training": (part_training, 260),
    "sampling": (part_sampling, 60),
    "features": (part_features, 80),
    "penalties": (part_penalties, 50),
}


# ---- Training by the command's own loop ----


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

    def should_stop(self) -> bool:
        """Called once a step, before anything is saved; Enough once the watch has seen all."""
        self.watch.step()
        if self.watch.seen == steps_of(self.watch.bench.sizes):
            raise Enough
        return False


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

    last = steps_of(watch.bench.sizes) + 1  # within the first epoch, whose end would save
    cohort = made_up_cohort(watch.bench.sizes.side, last * cfg.batch_size * cfg.critic_steps)
    cfg = replace(cfg, max_steps=last, num_epochs=1, log_interval=watch.bench.sizes.steps)
    source = torch.Generator().manual_seed(0)
    profiles = torch.randn(len(cohort.slides), latent, generator=source) if latent else None
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            fit(
                run,
                cohort,
                profiles,
                profiles,
                dict.fromkeys(("digest", "latent", "coverage")),
                cfg,
                watch.bench.device,
            )
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


def best(results: Result, key: str) -> float | None:
    """Return the greatest value of `key` in any of the results; None where none has it."""
    return max((v[key] for v in results.values() if isinstance(v, dict) and key in v), default=None)


def main(args: argparse.Namespace) -> int:
    """Run the parts that were asked for, report each; print a last line of JSON."""
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: --device cpu --quick checks that the parts run")
        return 2
    start = time.monotonic()
    if args.device != "cpu":
        torch.cuda.init()
    sizes = QUICK if args.quick else Sizes()
    if args.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for one another tell nothing
    ends = start + args.seconds
    bench = Bench(torch.device(args.device), sizes, args.bar, args.out, ends)
    result: Result = {"benchmark": "gpu", "quick": args.quick}
    for name in args.parts:
        print(f"{name}:", flush=True)
        began = time.monotonic()
        part, seconds = PARTS[name]
        bench.ends = min(ends, began + seconds)
        try:
            result[name] = part(bench)
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            result[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        result[name]["seconds"] = round(time.monotonic() - began, 1)
        if args.out is not None:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps({"part": name, **result[name]}) + "\n")
    print(json.dumps(result | {"seconds": round(time.monotonic() - start)}))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: a check of the benchmark itself")
    parser.add_argument("--seconds", type=float, default=570, help="after which nothing new is begun (%(default)s)")
    parser.add_argument("--bar", type=float, default=0.25, help="share of the bf16 rate asked for (%(default)s)")
    parser.add_argument("--out", type=Path, help="file that gets a line of JSON after each part")
    return parser


if __name__ == "__main__":
    sys.exit(main(build_parser().parse_args()))
