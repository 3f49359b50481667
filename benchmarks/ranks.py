"""Training on two processes against one: steps per second, efficiency, bytes of gradients, and the sums' time.

    python benchmarks/ranks.py --n 8

GAN (DCGAN, wgangp) and beta-VAE of reduced size on made-up batches, one thread a process, on CPUs over gloo. The batch
is the same for one process and for two, as the training's is: two have half of it each. efficiency = seconds of one /
(2 x seconds of two); efficiency_processor: the same of rank 0's processor time, which other programs beside it change
less. sum_share: of a step's time, that the sum of the gradients takes. Then, on paper, what 8 and 64 GPUs would do with
the paper's networks: nothing of that is measured. Sums come after the backward pass, beside nothing, in a ring:

    seconds = T + 2 (N - 1) / N x bytes / link + 2 (N - 1) x latency       efficiency = T / seconds

T: seconds of a step of one GPU's share; bytes: of the step's gradients, fp32; link: bytes per second each way of the
slowest link of the ring. Left out: batch norm's sums (a few kB for each layer), waiting for the slowest, reading tiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.steps import gan_settings
from benchmarks.turns import cpu
from common.distributed import joined
from common.joint_sums import sum_gradients
from common.launching import free_port
from models.betavae import BetaVAE, beta_vae_loss
from models.gan_losses import LOSSES
from models.gan_steps import critic_step, generator_step
from models.gan_training import GANTraining
from models.networks import build_critic, build_generator, generator_args
from models.step_draws import StepDraws

GENES, SIZES, LATENT, ROWS = 4000, [1200, 800, 400], 400, 128
LINKS = {8: 150e9, 64: 25e9}  # bytes/s each way, assumed: NVLink in one machine; 200 Gb/s for each GPU between them
LATENCY = 10e-6  # s for each of the ring's turns; assumed
GPU_STEPS = (0.03, 0.1, 0.3)  # s; assumed
DEVICE = torch.device("cpu")


def gan_side(share: Callable[[int], slice], side: int, batch: int) -> tuple[Callable[[int], Any], list]:
    """Return a step of the GAN on this rank's share, and its optimisers."""
    cfg = gan_settings(loss_type="wgangp", img_size=side, batch_size=batch, encoding_dims=128, step_channels=16)
    gan, rows = GANTraining(cfg, 0, DEVICE), share(batch)
    draws, part = StepDraws(cfg, rows, DEVICE), (rows.stop - rows.start) / batch
    real = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))[rows] * 2 - 1

    def step(number: int) -> None:
        fake = gan.generator(draws.noise(gan.generator, number, 0))
        tiles = real, fake, draws.epsilon(number, 0)
        critic_step(gan.critic, gan.optimizer_c, LOSSES["wgangp"], *tiles, share=part)
        generator_step(gan.critic, gan.optimizer_g, LOSSES["wgangp"], fake, share=part)

    return step, [gan.optimizer_c, gan.optimizer_g]


def vae_side(share: Callable[[int], slice]) -> tuple[Callable[[int], Any], list]:
    """Return a step of the beta-VAE on this rank's share, and its optimiser in a list."""
    torch.manual_seed(0)
    model = BetaVAE(GENES, SIZES, SIZES[1::-1], LATENT)
    adam, rows = torch.optim.Adam(model.parameters(), lr=5e-5, fused=True), share(ROWS)
    x = torch.randn(ROWS, GENES)[rows]

    def step(number: int) -> None:
        torch.manual_seed(number)
        noise, kept = model.draw(ROWS, DEVICE)
        adam.zero_grad(set_to_none=True)
        loss = beta_vae_loss(x, *model(x, noise[rows], kept[rows]), beta=5e-4)["total"]
        (loss * len(x) / ROWS).backward()
        sum_gradients(adam)
        adam.step()

    return step, [adam]


def of_one_rank(n: int, side: int, batch: int) -> None:
    """Time both sides as one rank of so many as the environment says; rank 0 prints a line of JSON."""
    torch.set_num_threads(1)
    found = {}
    with joined(DEVICE) as ranks:
        for name, (step, optimizers) in {
            "gan": gan_side(ranks.share, side, batch),
            "vae": vae_side(ranks.share),
        }.items():
            seconds, processor, sums = [], [], []
            for number in range(n + 2):  # the first two warm up
                ranks.wait()
                start, busy = time.perf_counter(), time.process_time()
                step(number)
                between = time.perf_counter()
                processor.append(time.process_time() - busy)
                for optimizer in optimizers:
                    sum_gradients(optimizer)
                seconds.append(between - start)
                sums.append(time.perf_counter() - between)
            weights = [w for optimizer in optimizers for group in optimizer.param_groups for w in group["params"]]
            found[name] = {
                "seconds": statistics.median(seconds[2:]),
                "processor": statistics.median(processor[2:]),
                "sum_seconds": statistics.median(sums[2:]),
                "gradient_mb": sum(4 * w.numel() for w in weights) / 1e6,
            }
    if ranks.main:
        print(json.dumps(found))


def of_world(world: int, words: list[str]) -> dict[str, Any]:
    """Start the ranks; return what rank 0 found."""
    shared = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
    started = []
    for k in range(world):
        mine = {name: str(value) for name, value in {**shared, "RANK": k, "LOCAL_RANK": k}.items()}
        out = subprocess.PIPE if k == 0 else subprocess.DEVNULL
        command = [sys.executable, __file__, "--rank", *words]
        started.append(subprocess.Popen(command, env={**os.environ, **mine}, stdout=out, text=True))
    found, _ = started[0].communicate()
    if any(process.wait() for process in started):
        sys.exit(f"{world} ranks: one of them failed; its own message stands above")
    return json.loads(found.splitlines()[-1])


def paper_bytes() -> dict[str, float]:
    """Return the bytes of a step's gradients, fp32, of the networks at the paper's size."""
    with torch.device("meta"):
        cfg = gan_settings(loss_type="wgangp", img_size=256)
        gan = [build_generator(generator_args(cfg)), build_critic(cfg)]
        networks = {"gan": gan, "vae": [BetaVAE(19198)]}
    return {name: 4.0 * sum(w.numel() for part in parts for w in part.parameters()) for name, parts in networks.items()}


def efficiency(step: float, size: float, world: int) -> float:
    """Return T / seconds of the formula above, for a step of `step` seconds and `size` bytes."""
    sums = 2 * (world - 1) / world * size / LINKS[world] + 2 * (world - 1) * LATENCY
    return step / (step + sums)


def main() -> None:
    """Time one and two processes, print both, the paper's table and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8, help="timed steps (default 8)")
    parser.add_argument("--side", type=int, default=64, help="pixels of the GAN's tiles (default 64)")
    parser.add_argument("--batch_size", type=int, default=16, help="tiles in a batch of all processes (default 16)")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        of_one_rank(args.n, args.side, args.batch_size)
        return
    words = [f"--{name}={getattr(args, name)}" for name in ("n", "side", "batch_size")]
    one, two = of_world(1, words), of_world(2, words)
    result: dict[str, Any] = {"benchmark": "ranks", "n": args.n, "load": round(os.getloadavg()[0], 1), **cpu()}
    for name in one:
        a, b = one[name]["seconds"], two[name]["seconds"]
        result[name] = {
            "steps_per_s_1": round(1 / a, 3),
            "steps_per_s_2": round(1 / b, 3),
            "efficiency": round(a / (2 * b), 3),
            "efficiency_processor": round(one[name]["processor"] / (2 * two[name]["processor"]), 3),
            "gradient_mb": round(two[name]["gradient_mb"], 1),
            "sum_share": round(two[name]["sum_seconds"] / b, 3),
        }
        print(f"{name}: {result[name]}")
    result["on_paper"] = {}
    for name, size in paper_bytes().items():
        result["on_paper"][f"{name}_gradient_mb"] = round(size / 1e6)
        for world in LINKS:
            shares = {f"{1000 * step:g} ms": round(efficiency(step, size, world), 2) for step in GPU_STEPS}
            result["on_paper"][f"{name}_{world}"] = shares
            print(f"on paper, {name}, {world} GPUs, {size / 1e6:.0f} MB of gradients: efficiency by T {shares}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
