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
import json
import sys
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gan_step import BETAS, RATE_C, RATE_G, loss_functions, peer_step, plain_forward
from gpu_bench import QUICK, Bench, Result, Sizes, tf32_allowed
from gpu_training import longest_kernels, residual, trained
from steps import GANStep, gan_settings

from common.config import BetaVAESettings
from models.betavae import BetaVAE, beta_vae_loss
from models.compiling import MODES
from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANDiscriminator, DCGANGenerator
from models.generate import generate_tiles
from models.networks import build_generator, generator_args

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
    from models.features import Extractor, load_extractor
    from models.inception import FIDInception, fuse, round_late

    sizes, result = bench.sizes, {}
    images = np.random.default_rng(0).integers(0, 256, (sizes.feature_batch, sizes.side, sizes.side, 3), np.uint8)

    def inception(precision: str) -> Extractor:
        network = fuse(FIDInception())
        network.fc = torch.nn.Identity()
        network = round_late(network) if precision == "bf16" else network
        return Extractor(
            "inception", network, "", sizes.inception_side, (0.5,) * 3, (0.5,) * 3, False, bench.device, precision
        )

    def lite0(precision: str) -> Extractor:
        return load_extractor("efficientnet_lite0", device=bench.device, precision=precision)

    def extract(make: Callable[[str], Extractor], precision: str) -> Result:
        extractor = make(precision)
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
